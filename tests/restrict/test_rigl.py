"""RigL's claim: places that follow the gradient find what a fixed random mask cannot."""

import copy

import pytest
import torch
from torch import nn

from modicum.core.parametrization import Step
from modicum.restrict import Rigl
from modicum.train.trained import trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_places_follow_what_matters(seed):
    """Of 64 inputs, four matter: with a tenth of the entries a fixed mask misses most of them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 64, generator=draw)
    y = x[:, :4] @ torch.randn(4, 8, generator=draw)
    errors = {}
    for renewed in (0.0, 0.5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 8, bias=False))
        with trained(model, f"rigl keep=0.1 every=10 renewed={renewed}", total=400, seed=seed, scratch=True) as t:
            optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
            for _ in range(400):
                loss = (model(x) - y).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                t.revise(optimizer)
                assert int((t.weight("0.weight") != 0).sum()) <= 51
            errors[renewed] = loss.item()
    assert errors[0.5] < 0.05 * errors[0.0]


def test_ten_steps_are_those_of_a_dense_twin_with_a_mask():
    """Values, places and moments are those of dense tensors and explicit masks, to the last bit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12, bias=False))
    x, y = torch.randn(32, 16), torch.randn(32, 12)
    with trained(model, "rigl keep=0.25 every=3 until=1.0", total=10) as t:
        state = t.places["0.weight"].state
        mask = torch.zeros(192, dtype=torch.bool).index_fill(0, state["places"], True).reshape(12, 16)
        dense = torch.where(mask, model[0]._parameters.get("weight").detach(), 0.0).requires_grad_()
        mine, twin = torch.optim.SGD(t.parameters(), lr=0.1, momentum=0.9), torch.optim.SGD([dense], lr=0.1, momentum=0.9)
        for number in range(1, 11):
            (model(x) - y).square().mean().backward()
            mine.step()
            mine.zero_grad()
            t.revise(mine)
            (x @ dense.T - y).square().mean().backward()
            gradient = dense.grad.clone()
            dense.grad *= mask
            twin.step()
            twin.zero_grad()
            if number % 3 == 0 and number < 10:
                mask = _renewed(dense, mask, gradient, twin, Step(number, 10))
            assert torch.equal(t.weight("0.weight"), dense), number
            assert torch.equal(t.places["0.weight"].state["places"], mask.reshape(-1).nonzero()[:, 0])


def _renewed(dense, mask, gradient, optimizer, step):
    share = 0.15 * (1 + torch.cos(torch.tensor(torch.pi * step.number / 10)).item())
    moved, old = int(share * int(mask.sum())), mask.reshape(-1).clone()
    flat, new = dense.data.reshape(-1), old.clone()
    entries = old.nonzero()[:, 0]
    new[entries[flat[entries].abs().argsort(stable=True)[:moved]]] = False
    new[gradient.reshape(-1).abs().masked_fill(old, -1).argsort(descending=True, stable=True)[:moved]] = True
    flat[~(new & old)] = 0
    optimizer.state[dense]["momentum_buffer"].reshape(-1)[~(new & old)] = 0
    return new.reshape(mask.shape)


def test_densities_sum_to_what_was_asked():
    shapes = {"a": (64, 64), "b": (8, 256), "c": (4, 4)}
    counts = Rigl(keep=0.2).common(shapes, torch.Generator(), 0).frozen
    assert abs(sum(int(count) for count in counts.values()) - 0.2 * (4096 + 2048 + 16)) <= 2
    assert int(counts["entries of c"]) == 16, "small layers stay whole"


def test_moments_move_with_their_entries():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12, bias=False))
    with trained(model, "rigl keep=0.25 every=1", total=10) as t:
        optimizer = torch.optim.Adam(t.parameters(), lr=0.1)
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        (parameter,) = t.parameters()
        before = dict(zip(t.places["0.weight"].state["places"].tolist(), copy.deepcopy(optimizer.state[parameter]["exp_avg"]).tolist()))
        t.revise(optimizer)
        after = dict(zip(t.places["0.weight"].state["places"].tolist(), optimizer.state[parameter]["exp_avg"].tolist()))
    assert before.keys() != after.keys()
    assert all(after[place] == before.get(place, 0.0) for place in after)
