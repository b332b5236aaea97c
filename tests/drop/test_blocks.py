"""Block drop: the span that does least goes, and the rest is the model without it."""

import pytest
import torch

import modicum
from modicum.core.errors import ModelError
from modicum.data.splits import call
from modicum.testing import zoo


def idle(position):
    """A llama whose block at ``position`` hardly changes the hidden state."""
    module, batches = zoo.build("llama")
    with torch.no_grad():
        block = module.model.layers[position]
        block.self_attn.o_proj.weight.mul_(1e-3)
        block.mlp.down_proj.weight.mul_(1e-3)
    return module, batches


@pytest.mark.parametrize("position", [1, 2])
def test_the_idle_block_goes(position):
    module, batches = idle(position)
    result = modicum.fit(module, method="blocks count=1", target="modicum", data=batches)
    assert f"model.layers.{position} to model.layers.{position}" in result.receipt["events"][0]
    assert result.receipt["quality"]["mean"] < 1e-3
    assert len(result.model.model.layers) == 2


@pytest.mark.parametrize("target", ["modicum", "transformers"])
def test_what_is_written_is_the_model_without_the_block(target, tmp_path):
    module, batches = idle(1)
    result = modicum.fit(module, method="blocks count=1", target=target, data=batches, out=tmp_path / "out")
    del module.model.layers[1]
    for place, block in enumerate(module.model.layers):
        block.self_attn.layer_idx = place
    module.config.num_hidden_layers = 2
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(call(result.model, batch).logits, call(module, batch).logits, rtol=1e-5, atol=1e-5)


def test_more_blocks_than_there_are():
    module, batches = zoo.build("llama")
    with pytest.raises(ModelError, match="Drop fewer"):
        modicum.fit(module, method="blocks count=3", target="modicum", data=batches)


@pytest.mark.parametrize(
    ("method", "kept", "gone"), [("blocks count=1", "model.layers.1.self_attn.q_proj", 2), ("replaceme count=1", "*.2.mlp.*", 1)]
)
def test_a_block_with_a_weight_that_is_kept_stays(method, kept, gone):
    module, batches = idle(3 - gone)
    result = modicum.fit(module, method=method, target="modicum", data=batches, keep=[kept])
    assert f"model.layers.{gone} to model.layers.{gone}" in result.receipt["events"][0]


def test_what_a_stand_in_would_be_folded_into_may_be_kept():
    module, batches = idle(2)
    with pytest.raises(ModelError, match=r"model\.layers\.1: its last projection would change, and a weight of it is kept"):
        modicum.fit(module, method="replaceme count=1 first=2", target="modicum", data=batches, keep=["*.1.mlp.down_proj"])
    with pytest.raises(ModelError, match="hold nothing that is kept"):
        modicum.fit(module, method="blocks count=1 first=2", target="modicum", data=batches, keep=["*.2.mlp.down_proj"])
