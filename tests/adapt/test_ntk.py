"""NTK-attention's claim: it begins at the base, is what a prefix would add, and learns with as many numbers whatever the prefix's length."""

import pytest
import torch
import torch.nn.functional as F

from modicum.core.errors import ModelError
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.loop import train
from modicum.train.trained import trained


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_it_begins_at_the_base_and_learns(name):
    model, _ = zoo.build(name)
    draw = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 12, (1, 16), generator=draw)} for _ in range(4)]
    with torch.no_grad():
        before = model.eval()(**rows[0]).logits
    with trained(model, "ntk", total=60) as t:
        torch.testing.assert_close(model(**rows[0]).logits, before, rtol=1e-4, atol=1e-5)
        config = model.config
        wide = config.hidden_size // config.num_attention_heads
        assert t.count == config.num_hidden_layers * config.num_attention_heads * wide * (wide + 1)
        losses = train(model, t, rows, Loop(steps=60, batch=4, rate=0.1))
    assert losses[-1] < 0.95 * losses[0]
    assert torch.equal(model(**rows[0]).logits, before) and config._attn_implementation != "modicum_ntk"


def test_attentions_without_numbers_are_told_apart_by_their_order():
    model, batches = zoo.build("vit")
    with torch.no_grad():
        before = model.eval()(**batches[0]).logits
    with trained(model, "ntk", total=2) as t:
        torch.testing.assert_close(model(**batches[0]).logits, before, rtol=1e-4, atol=1e-5)
        model(**batches[0]).logits.square().sum().backward()
        (values,) = [tensor for name, tensor in t.named_parameters().items() if name.endswith("values")]
        assert all(bool(each.any()) for each in values.grad) and not torch.equal(values.grad[0], values.grad[1])


def test_it_is_a_prefix_of_keys_with_such_features():
    """Z and k that are sums over a prefix's keys give that prefix's attention under the kernel φ(q)·φ(k)."""
    from modicum.adapt.ntk import _NOW, _attention

    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 4, generator=draw) for _ in range(3))
    keys, values = torch.rand(2, 50, 4, generator=draw), torch.randn(2, 50, 4, generator=draw)
    token = _NOW.set(lambda layer: (keys.transpose(1, 2) @ values, keys.sum(1)))
    try:
        module = type("Layer", (), {"layer_idx": 0})()
        found, _ = _attention(module, q, k, v, None)
    finally:
        _NOW.reset(token)
    own, far = (q @ k.transpose(2, 3) / 2).exp(), (F.elu(q / 4**0.25) + 1) @ keys.transpose(1, 2)
    weights = torch.cat([own, far], -1)
    wanted = weights @ torch.cat([v, values[None]], 2) / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(found.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)


def test_a_model_whose_attention_has_no_name_is_told():
    with pytest.raises(ModelError, match="must let its attention be chosen by name"):
        trained(torch.nn.Linear(2, 2), "ntk")
