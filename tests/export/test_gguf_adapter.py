"""Adapters for llama.cpp: the format's own reader finds, under llama.cpp's names and orders, what changes each weight."""

import gguf
import pytest
import torch

from modicum.core.errors import ModelError
from modicum.export.adapters import changed_from, write
from modicum.export.gguf.adapter import to_gguf
from modicum.export.gguf.architectures import row_of
from modicum.export.gguf.naming import Naming
from modicum.models.open import open_model
from modicum.testing import spelling
from modicum.train.trained import trained


def learnt(folder, name, plan="lora rank=2"):
    """A checkpoint's folder, its model, and a delta on it."""
    spelling.checkpoint(name, folder)
    model = open_model(folder)
    model.weights.load(model.weights.names)
    with trained(model.module, plan) as t:
        draw = torch.Generator().manual_seed(0)
        for parameter in t.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
        return model, t.delta(str(folder))


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel"])
def test_pairs_change_each_tensor_as_the_delta_changes_its_weight(name, tmp_path):
    model, delta = learnt(tmp_path / "base", name)
    path = to_gguf(delta, tmp_path / "adapter", tmp_path / "base")
    reader = gguf.GGUFReader(path)
    held = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    said = {key: reader.fields[key].contents() for key in ("general.type", "adapter.type", "general.architecture", "adapter.lora.alpha")}
    row = row_of(type(model.module))
    assert said == {"general.type": "adapter", "adapter.type": "lora", "general.architecture": row.name, "adapter.lora.alpha": 0.0}
    naming, seen = Naming(row, model.config, len(model.blocks), "model"), set()
    for unit in delta.forms:
        weight = model.matrix(model.units[unit]).float()
        change = delta.weight(unit, weight.to(model.units[unit].dtype)).float() - weight
        for part in naming.parts(model.units[unit].parameter, model.units[unit].shape):
            pair = [held[f"{part.name}.lora_{side}"] for side in "ba"]
            assert pair[1].shape == (2, weight.shape[1]) and pair[0].shape[1] == 2
            torch.testing.assert_close(pair[0] @ pair[1], part.of(change), rtol=1e-3, atol=2e-3)
            seen |= {f"{part.name}.lora_a", f"{part.name}.lora_b"}
    assert seen == held.keys()


@pytest.mark.parametrize("name, plan, said", [
    ("MambaForCausalLM", "lora rank=2", "is of kind convolution, and an adapter for llama.cpp"),
    ("LlamaForCausalLM", "ia3", "an adapter of thin matrices cannot hold"),
    ("BertForMaskedLM", "lora rank=2", "architecture that llama.cpp knows"),
])  # fmt: skip
def test_what_it_cannot_hold_is_refused_in_words(name, plan, said, tmp_path):
    _, delta = learnt(tmp_path / "base", name, plan)
    with pytest.raises(ModelError, match=said):
        to_gguf(delta, tmp_path / "adapter", tmp_path / "base")
    assert not (tmp_path / "adapter").exists()


def test_a_change_of_any_kind_is_told_at_a_rank_and_written_in_each_format(tmp_path):
    model, delta = learnt(tmp_path / "base", "LlamaForCausalLM", {"*.q_proj.weight": "shift"})
    delta.save(tmp_path / "delta")
    found = changed_from(tmp_path / "delta", tmp_path / "base", rank=2)
    for format, file in (("modicum", "delta.json"), ("peft", "adapter_config.json"), ("gguf", "adapter.gguf")):
        write(found, tmp_path / format, tmp_path / "base", format)
        assert (tmp_path / format / file).exists()
    back = changed_from(tmp_path / "peft", tmp_path / "base")
    read = lambda name: model.matrix(model.units[name])
    assert back.forms.keys() == delta.forms.keys()
    for (_, one), (_, other) in zip(found.on(read), back.on(read)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
