"""DPT's claim: a prompt of low rank learns what a whole one learns, with a fraction of its numbers."""

import pytest
import torch

from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.loop import train
from modicum.train.trained import trained


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_product_learns_what_a_whole_prompt_learns(seed):
    draw, last, counts = torch.Generator().manual_seed(seed), {}, {}
    rows = [{"input_ids": torch.randint(3, 12, (1, 16), generator=draw)} for _ in range(4)]
    for option in ("prompt tokens=12", "dpt tokens=12 rank=2"):
        model, _ = zoo.build("llama")
        with trained(model, option, total=80, seed=seed) as t:
            losses = train(model, t, rows, Loop(steps=80, batch=4, rate=0.05, seed=seed))
            last[option], counts[option] = losses[-1] / losses[0], t.count
    whole, mine = counts.values()
    assert mine < 0.3 * whole
    assert max(last.values()) < 0.9 and last["dpt tokens=12 rank=2"] < 1.1 * last["prompt tokens=12"]


def test_at_full_rank_it_is_a_prompt():
    model, _ = zoo.build("llama")
    found = []
    for option in ("prompt tokens=4", "dpt tokens=4 rank=4"):
        with trained(model, option) as t:
            (one,) = t.asides
            found.append((one.method.rows(one.state).detach(), model.get_input_embeddings().weight.detach()))
    rows, table = found[1]
    assert all((table - row).abs().amax(1).min() < 1e-5 for row in rows), "each row is an embedding again"
