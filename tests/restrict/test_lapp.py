"""LAPP: exact shares over all layers, uneven between them, and rows that are needed stay."""

import torch

from modicum.core.parametrization import Start, Step
from modicum.restrict import Lapp


def test_the_share_is_met_and_layers_differ(problem):
    plan, rows = {"0.weight": "lapp keep=0.5 bypass=0", "2.weight": "dense"}, {}

    def each(number, t, optimizer):
        rows[number] = int((t.weight("0.weight") != 0).any(1).sum())

    found, weights = problem.learn(plan, each=each)
    assert rows[150] == rows[61] == 8 and rows[1] >= 14, "rows stay for good from the share 0.4 on"
    assert found < 0.1


def test_rows_that_are_small_go_from_the_layer_that_has_them():
    method, shapes = Lapp(keep=0.5, until=0.0), {"a": (8, 4), "b": (8, 4)}
    common = method.common(shapes, torch.Generator(), 0)
    weight = {"a": torch.ones(8, 4), "b": torch.ones(8, 4) * torch.tensor([4.0, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 4.0])[:, None]}
    states = {unit: method.begin(Start(unit, (8, 4), weight[unit], torch.Generator().manual_seed(0), 0, common=common)) for unit in shapes}
    states = {unit: state.having({"threshold": torch.tensor([0.5])}) for unit, state in states.items()}
    made = method.revise(states, {}, 0, Step(1, 10)).states
    assert [int(made[unit]["stays"].sum()) for unit in shapes] == [6, 2]


def test_gates_have_the_gradient_of_a_sigmoid_around_the_threshold():
    method, shapes = Lapp(keep=0.5, bypass=0), {"a": (8, 4)}
    draw = torch.Generator().manual_seed(0)
    state = method.begin(Start("a", (8, 4), torch.randn(8, 4, generator=draw), draw, 0, common=method.common(shapes, draw, 0)))
    state = state.having({"latent": state["latent"].requires_grad_(), "threshold": torch.tensor([1.0], requires_grad=True)})
    worth, sizes = torch.randn(8, 4, generator=draw), state["latent"].norm(dim=1)
    soft = ((sizes / sizes.mean().detach() - state["threshold"]) / method.width).sigmoid()
    hard = (soft >= 0.5).float()
    plain = ((soft + (hard - soft).detach())[:, None] * state["latent"] * worth).sum()
    made = (method.weight(None, state, Step()) * worth).sum()
    assert 0 < hard.sum() < 8
    for one, other in zip(*(torch.autograd.grad(each, tuple(state.trained.values())[:2]) for each in (plain, made))):
        torch.testing.assert_close(one, other)
