"""Weighted group sparse envelopes: exactly as many rows as were asked for, and the right ones."""

import torch
from torch import nn

from modicum.train.trained import trained


def test_the_number_of_rows_is_exact_and_they_can_be_taken_out(problem):
    torch.manual_seed(problem.seed)
    model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Tanh(), nn.Linear(16, 8, bias=False))
    with trained(model, {"0.weight": "wgsef keep=0.25", "2.weight": "dense"}, total=200) as t:
        optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (model(problem.x) - problem.y).square().mean()
            loss.backward()
            optimizer.step()
            t.revise(optimizer)
        made, out, form = t.weight("0.weight").detach(), t.weight("2.weight").detach(), t.forms()["0.weight"]
        left = made.abs().sum(1) > 0
        assert int(left.sum()) == 4 and form.values == 4 * 64
        narrow = torch.tanh(problem.x @ made[left].T) @ out[:, left].T
        torch.testing.assert_close(narrow, model(problem.x), rtol=1e-4, atol=1e-5)
        assert loss < 0.6 * problem.y.square().mean()


def test_rows_that_go_shrink_before_they_are_zero(problem):
    sizes, moments = [], []

    def each(number, t, optimizer):
        place = t.places["0.weight"]
        latent = place.state["latent"].detach()
        gone = ~place.method.rows(latent)
        sizes.append(float(latent[gone].norm()))
        moments.append(float(optimizer.state[place.state["latent"]]["exp_avg"][gone].norm()))

    problem.learn("wgsef keep=0.5", steps=100, each=each)
    assert sizes[70] < 0.8 * sizes[10] and sizes[80] == 0
    assert moments[70] > 0 and not any(moments[75:]), "what has gone has no moments either"
