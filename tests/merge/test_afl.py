"""Heads of any partition give the head of all data, to the precision of float64."""

import pytest
import torch


@pytest.mark.parametrize("clients", [2, 7, 40])
@pytest.mark.parametrize("target", [0.0, 0.5])
def test_the_partition_does_not_count(merged, clients, target):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=draw, dtype=torch.float64)
    y = x @ torch.randn(8, 3, generator=draw, dtype=torch.float64) + torch.randn(300, 3, generator=draw, dtype=torch.float64)
    solve = lambda x, y, ridge: torch.linalg.solve(x.T @ x + ridge * torch.eye(8, dtype=torch.float64), x.T @ y).T
    order = y[:, 0].argsort()  # by what is to be told: as unlike as clients can be
    parts = [(x[places], y[places]) for places in order.tensor_split(clients)]
    heads = [{"w": solve(*part, 2.0)} for part in parts]
    found = merged(f"afl ridge=2 target={target}", heads[0], heads, statistics=[{"w/gram": x.T @ x} for x, _ in parts])["w"]
    assert float((found - solve(x, y, target)).abs().max()) < 1e-10
    assert float((merged("average", heads[0], heads)["w"] - solve(x, y, target)).abs().max()) > 0.01
