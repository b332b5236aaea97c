"""Prefix tuning's claim: keys and values before the inputs' in each layer make a frozen model fit a text."""

import pytest
import torch

from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.loop import train
from modicum.train.trained import trained


def test_a_prefix_of_what_a_model_read_is_as_if_it_had_read_it():
    model, _ = zoo.build("llama")
    ids = torch.randint(3, 100, (1, 10), generator=torch.Generator().manual_seed(0))
    with trained(model, "prefix tokens=4") as t, torch.no_grad():
        (one,) = t.asides
        assert t.count == 2 * one.state["keys"].numel()
    with torch.no_grad():
        whole = model(ids).logits[:, 4:]
        read = model(ids[:, :4], use_cache=True)
    cache = getattr(read, "past_key_values", None) or read.cache
    with trained(model, "prefix tokens=4") as t, torch.no_grad():
        for layer, kept in enumerate(cache.layers):
            t.asides[0].state["keys"][layer], t.asides[0].state["values"][layer] = kept.keys[0], kept.values[0]
        torch.testing.assert_close(model(ids[:, 4:]).logits, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_it_learns(name):
    model, _ = zoo.build(name)
    draw = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 12, (1, 16), generator=draw)} for _ in range(4)]
    with trained(model, "prefix tokens=6", total=60) as t:
        losses = train(model, t, rows, Loop(steps=60, batch=4, rate=0.1))
    assert losses[-1] < 0.95 * losses[0]
