"""What every method that trains a sparse weight is held to: its density, and the naive twin with dense tensors and explicit masks."""

import copy

import pytest
import torch
from torch import nn

from modicum.core.method import registry
from modicum.core.progress import Quiet
from modicum.restrict._family import Sparsity
from modicum.train.loop import _drawn, joined, train
from modicum.train.scoring import scored
from modicum.train.settings import Loop
from modicum.train.trained import trained

KEEP, STEPS = 0.4, 12
TRIED = {"keep": KEEP, "every": 2}


def methods(but=()):
    for key, cls in registry().items():
        if issubclass(cls, Sparsity) and key.split("/")[1] not in but:
            yield pytest.param(cls(**{name: value for name, value in TRIED.items() if name in cls.__dataclass_fields__}), id=key)


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12, bias=False), nn.Tanh(), nn.Linear(12, 4, bias=False))
    return model, torch.randn(32, 10), torch.randn(32, 4)


def masks(t):
    found = {}
    for name, place in t.places.items():
        rows, columns = place.state["shape"].tolist()
        found[name] = torch.zeros(rows * columns, dtype=torch.bool).index_fill(0, place.state["places"], True).reshape(rows, columns)
    return found


@pytest.mark.parametrize("method", list(methods(but=("spdf",))))
def test_the_density_is_met_to_the_entry(method):
    """In the end, and what a budget is told of it beforehand are the same."""
    model, x, y = problem()
    with trained(model, str(method), total=STEPS, scratch=True) as t:
        run(model, t, x, y)
        forms = t.forms()
    shapes = {name: form.shape for name, form in forms.items()}
    assert sum(form.values for form in forms.values()) == round(KEEP * (10 * 12 + 12 * 4))
    assert sum(form.nbytes for form in method.outlines(shapes).values()) == sum(form.nbytes for form in forms.values())


@pytest.mark.parametrize("method", list(methods()))
def test_equal_seeds_give_equal_bits(method):
    found = []
    for _ in range(2):
        model, x, y = problem()
        with trained(model, str(method), total=STEPS, seed=3, scratch=True) as t:
            run(model, t, x, y)
            found.append([t.weight(name).detach() for name in t.places])
    assert all(torch.equal(one, two) for one, two in zip(*found))


@pytest.mark.parametrize("method", list(methods(but=("tickets", "freezenet", "smp", "pst"))))
def test_every_step_is_that_of_a_dense_twin_with_a_mask(method):
    """An entry that goes, or comes, has no value and no momentum; the others are the twin's to the last bit."""
    model, x, y = problem()
    plain = copy.deepcopy(model)
    with trained(model, str(method), total=STEPS) as t:
        scored(t, lambda: (model(x) - y).square().mean())
        mask = masks(t)
        for name in mask:
            plain.get_parameter(name).data = t.weight(name).detach().clone()
        mine = torch.optim.SGD(t.parameters(), lr=0.1, momentum=0.9)
        twin = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
        for number in range(STEPS):
            for module, optimizer in ((model, mine), (plain, twin)):
                optimizer.zero_grad()
                (module(x) - y).square().mean().backward()
                if module is plain:
                    for name in mask:
                        plain.get_parameter(name).grad *= mask[name]
                optimizer.step()
            t.revise(mine)
            new = masks(t)
            for name, old in mask.items():
                stays = old & new[name] if method.key() != "restrict/spdf" else new[name]
                plain.get_parameter(name).data *= stays
                twin.state[plain.get_parameter(name)]["momentum_buffer"] *= stays
                assert torch.equal(t.weight(name), plain.get_parameter(name)), (name, number)
            mask = new


class Twin(Quiet):
    """A dense module with explicit masks that follows a training of the loop, update by update."""

    def __init__(self, module, t, rows, loop):
        self.module, self.t, self.rows, self.loop, self.done = module, t, rows, loop, 0
        self.mask = masks(t)
        for name in self.mask:
            module.get_parameter(name).data = t.weight(name).detach().clone()
        self.optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0.0)

    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.loop.at(self.done)
        self.optimizer.zero_grad()
        losses, count = objective(self.module, joined(_drawn(self.rows, self.loop, self.done), self.loop.batch)[0])
        losses.sum().backward()
        new, spdf = masks(self.t), any(place.method.key() == "restrict/spdf" for place in self.t.places.values())
        for name, mask in self.mask.items():
            self.module.get_parameter(name).grad /= count
            self.module.get_parameter(name).grad *= mask
        self.optimizer.step()
        for name, mask in self.mask.items():
            parameter, stays = self.module.get_parameter(name), new[name] if spdf else mask & new[name]
            parameter.data *= stays
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[parameter][moment] *= stays
            assert torch.equal(self.t.weight(name), parameter), (name, self.done)
        self.mask, self.done = new, self.done + 1


def objective(module, batch):
    return (module(batch[0]) - batch[1]).square().mean(1), len(batch[0])


@pytest.mark.parametrize("method", list(methods(but=("tickets", "freezenet", "smp", "pst"))))
def test_ten_updates_of_the_loop_are_those_of_a_dense_twin_with_masks(method):
    """Under AdamW and its rates as they are for everybody, clipping off."""
    model, x, y = problem()
    plain, rows, loop = copy.deepcopy(model), list(zip(x[:, None], y[:, None])), Loop(steps=10, batch=8, clip=0.0)
    with trained(model, str(method), total=loop.steps) as t:
        scored(t, lambda: (model(x) - y).square().mean())
        twin = Twin(plain, t, rows, loop)
        train(model, t, rows, loop, objective=objective, progress=twin)
    assert twin.done == 10


def run(model, t, x, y):
    scored(t, lambda: (model(x) - y).square().mean())
    optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        t.revise(optimizer)


ALWAYS, CUBIC = {"random", "set", "rigl", "dsl"}, {"gradual", "activating"}


@pytest.mark.parametrize("method", [each for each in methods() if each.id.split("/")[1] in ALWAYS | CUBIC])
def test_the_density_is_exact_at_the_steps_that_the_guide_names(method):
    """Always where places only move; from the share ``until`` on where entries go, and never more than before."""
    model, x, y = problem()
    total, wanted, counts = 10 * 12 + 12 * 4, round(KEEP * (10 * 12 + 12 * 4)), []
    with trained(model, str(method), total=STEPS, scratch=True) as t:
        optimizer = torch.optim.SGD(t.parameters(), lr=0.1)
        counts.append(t.count)
        for _ in range(STEPS):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
            t.revise(optimizer)
            counts.append(sum(int(mask.sum()) for mask in masks(t).values()))
    if method.key().split("/")[1] in ALWAYS:
        assert set(counts) == {wanted}
    else:
        assert counts[0] == total and counts == sorted(counts, reverse=True)
        assert set(counts[int(0.75 * STEPS) :]) == {wanted}
