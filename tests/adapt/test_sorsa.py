"""SORSA's claim: vectors stay near orthonormal, and the loss is no worse than PiSSA's at equal rank."""

import pytest
import torch
from torch import nn

from modicum.train.trained import trained


def spectrum(size):
    u, v = (torch.linalg.qr(torch.randn(size, size)).Q for _ in range(2))
    return u * (torch.arange(1, size + 1) ** -0.5) @ v


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_vectors_stay_orthonormal_at_no_loss(seed):
    losses, off = {}, {}
    for method in ("lora rank=4", "pissa rank=4", "sorsa rank=4 strength=0.0", "sorsa rank=4 strength=0.01"):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(48, 48, bias=False)), torch.randn(512, 48)
        model[0].weight.data = spectrum(48)
        u, s, v = torch.linalg.svd(model[0].weight.detach())
        turn = torch.linalg.matrix_exp(0.3 * ((raw := torch.randn(48, 48) / 7) - raw.T))
        y = x @ (turn @ u[:, :4] * (s[:4] * torch.tensor([1.5, 0.5, 1.5, 0.5])) @ v[:4] + u[:, 4:] * s[4:] @ v[4:]).T
        with trained(model, method, total=300, seed=seed) as t:
            optimizer = torch.optim.Adam(t.parameters(), lr=0.01)
            for _ in range(300):
                loss = (model(x) - y).square().mean()
                penalty = t.penalty()
                optimizer.zero_grad()
                (loss if penalty is None else loss + penalty).backward()
                optimizer.step()
                t.revise(optimizer)
            losses[method], state = loss.item(), t.places["0.weight"].state
            if method.startswith("sorsa"):
                off[method] = (state["u"].T @ state["u"] - torch.eye(4)).norm().item()
    free, bound = off.values()
    assert bound < 0.5 * free and bound < 0.1
    assert losses["sorsa rank=4 strength=0.01"] < min(1e-3, losses["lora rank=4"])
    assert losses["pissa rank=4"] < 1e-3
