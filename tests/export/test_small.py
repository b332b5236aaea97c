"""A small model of a large one's kind: what it is tried on must be a model that its class lets be saved."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from modicum.export.small import small
from modicum.models.open import open_model
from modicum.sweep import rehearse


def test_widths_that_heads_do_not_divide_are_no_small_model(tmp_path):
    """Six heads in a width of 64 can be built, and cannot be saved."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=320, intermediate_size=352, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    model = open_model(LlamaForCausalLM(config).eval())
    batch = {"input_ids": torch.arange(24)[None]}
    found = small(model, rehearse(model, batch), batch)
    assert found is not None and found[0].parameters < model.parameters
    found[0].module.save_pretrained(tmp_path)
