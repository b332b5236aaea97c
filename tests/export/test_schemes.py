"""Targets in a quantization config: each matches its modules alone, with the head and without."""

import re

import pytest
import torch
import transformers

import modicum
from modicum.export.schemes import Targets, expert_targets
from modicum.testing import zoo

NAMES = [f"model.layers.{layer}.mlp.{part}" for layer in range(12) for part in ("up", "shared_experts.up", "experts.0.up")]
NAMES += ["lm_head", "model.norm"]


def matched(patterns, names):
    return {name for name in names if any(re.match(pattern.removeprefix("re:"), name) for pattern in patterns)}


def test_patterns_match_their_modules_alone():
    wanted = {"model.layers.1.mlp.up", "model.layers.11.mlp.up", "model.layers.3.mlp.shared_experts.up", "lm_head"}
    patterns = Targets(NAMES, "model").modules(wanted)
    assert len(patterns) == 3
    assert matched(patterns, NAMES) == wanted
    bare = [name.removeprefix("model.") for name in NAMES]
    assert matched(patterns, bare) == {name.removeprefix("model.") for name in wanted}
    assert not any("experts" in pattern for pattern in patterns)  # which stands for the routed ones


def test_experts_match_no_shared_expert():
    patterns = expert_targets(["model.layers.4.mlp.experts.7.up"])
    assert matched(patterns, NAMES) == {name for name in NAMES if ".experts." in name}


def test_a_name_that_another_list_has_too_keeps_its_place():
    names = ["model.layers.0.up", "model.tower.layers.0.up"]
    assert matched(Targets(names, "model").modules(names[:1]), names) == {"model.layers.0.up"}


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "qwen3_moe"])
def test_the_model_without_its_head_has_its_weights(name, tmp_path):
    model, batches = zoo.build(name, dtype=torch.bfloat16)
    modicum.fit(model, data=batches, target="transformers", out=tmp_path / "out", method="nearest bits=8 group=32")
    ids = batches[0]["input_ids"]
    base = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        wanted, found = model.base_model(ids).last_hidden_state.float(), base(ids).last_hidden_state.float()
    assert (wanted - found).norm() < 0.1 * wanted.norm()
