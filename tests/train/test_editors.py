"""Networks that write deltas, with an editor after MEND: what a gradient would change too much, it has learnt to leave."""

import copy

import pytest
import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.train.editors import delta, factors, written


class Learnt(nn.Module):
    """Inputs and gradients of a layer, each through a linear map that begins as identity, and a rate."""

    def __init__(self, rows, columns):
        super().__init__()
        self.left, self.right, self.rate = (
            nn.Linear(rows, rows, bias=False),
            nn.Linear(columns, columns, bias=False),
            nn.Parameter(torch.tensor(0.05)),
        )
        for layer in (self.left, self.right):
            nn.init.eye_(layer.weight)

    def write(self, seen):
        return {name: (-self.rate * self.left(each.gradients), self.right(each.inputs) / 160) for name, each in seen.items()}


def scene(seed):
    """A model whose inputs share a large direction, so that a gradient step for one changes all."""
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model, shared = nn.Sequential(nn.Linear(16, 8)), torch.randn(16, generator=draw)
    keys = lambda count: torch.randn(count, 16, generator=draw) + 3 * shared
    return model, keys, lambda count: torch.randn(count, 8, generator=draw)


def edited(model, editor, key, aim):
    return editor.write(factors(model, ["0.weight"], lambda: (model(key) - aim).square().sum()))


def judged(model, editor, keys, aims):
    """Errors at what is edited, and at what is not, with gradients to the editor."""
    key, aim, other = keys(1), aims(1), keys(16)
    before = model(other).detach()
    with written(model, edited(model, editor, key, aim)):
        return (model(key) - aim).square().mean(), (model(other) - before).square().mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_editor_learns_to_leave_alone_what_a_gradient_changes(seed):
    model, keys, aims = scene(seed)
    editor, plain = Learnt(8, 16), Learnt(8, 16)
    for learner, parameters in ((editor, editor.parameters()), (plain, [plain.rate])):  # the second learns its best step alone
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        for _ in range(800):
            loss = sum(judged(model, learner, keys, aims))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        wholes = []
        for learner in (editor, plain):
            with torch.enable_grad():
                found = [judged(model, learner, keys, aims) for _ in range(50)]
            wholes.append(sum((sum(each) for each in found), torch.zeros(())).item() / 50)
    assert wholes[0] < 0.75 * wholes[1]


def test_what_is_written_is_a_delta_and_nothing_is_left_behind():
    model, keys, aims = scene(0)
    before, editor, key, aim = copy.deepcopy(model.state_dict()), Learnt(8, 16), keys(2), aims(2)
    changes = edited(model, editor, key, aim)
    with written(model, changes):
        answer = model(key).detach()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    change = delta(model, changes, "a model")
    assert change.nbytes == 4 * 2 * (8 + 16), "of the rank of its tokens"
    model[0].weight.data = change.weight("0.weight", before["0.weight"])
    torch.testing.assert_close(model(key), answer, rtol=1e-5, atol=1e-6)


def test_factors_are_those_of_the_gradient():
    model, keys, aims = scene(0)
    seen = factors(model, ["0.weight"], lambda: (model(keys(5)) - aims(5)).square().sum())["0.weight"]
    assert seen.inputs.shape == (5, 16) and seen.gradients.shape == (5, 8)
    model, keys, aims = scene(0)
    (model(keys(5)) - aims(5)).square().sum().backward()
    torch.testing.assert_close(seen.gradients.T @ seen.inputs, model[0].weight.grad)


def test_what_cannot_be_written_is_told():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    loss = lambda: model["used"](torch.ones(1, 4)).sum()
    with pytest.raises(ModelError, match="norm.weight: must be the weight of a linear layer"):
        factors(model, ["norm.weight"], loss)
    with pytest.raises(ModelError, match="unused.weight: must be used by the model"):
        factors(model, ["unused.weight"], loss)
