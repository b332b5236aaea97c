"""Importance: attention that tokens receive, and sums over inputs in which they count by it."""

import copy

import pytest
import torch
import transformers
from torch import nn

import modicum
from modicum.core.errors import ModelError
from modicum.core.method import Need
from modicum.measure.importance import LEAST
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.sweep import Sweep
from modicum.sweep.important import Important

SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"num_key_value_heads": 2, "max_position_embeddings": 32}


def made(kind="sdpa", seed=0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**SIZES, **MORE, attn_implementation=kind)
    module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, value in module.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            nn.init.normal_(value, std=1.0)
    return module


def batches(count=6):
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 64, (2, 12), generator=draw)} for _ in range(count)]


def opened(module, **settings):
    return Subject.open(copy.deepcopy(module), Settings(compute="float32", **settings), batches())


def factors(found, block):
    """As they were counted, for each batch."""
    return [
        found.script.important.weighed(block, batch, torch.ones(*batch["input_ids"].shape, 1))[..., 0] for batch in found.data.calibration
    ]


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_tokens_count_by_the_attention_that_they_receive(kind):
    found = opened(made(kind), importance="attention")
    eager = made("eager")
    raw = []
    for batch in found.data.calibration:
        with torch.no_grad():
            received = eager(**batch, output_attentions=True).attentions[1].sum((1, 2))
        least, most = received.amin(1, keepdim=True), received.amax(1, keepdim=True)
        raw.append(LEAST + (1 - LEAST) * (received - least) / (most - least))
    expected = torch.cat(raw) / torch.cat(raw).square().mean().sqrt()
    assert torch.allclose(torch.cat(factors(found, "model.layers.1")), expected, atol=1e-4)
    assert "importance: tokens of calibration count by the attention that they receive, in 2 blocks" in found.model.notes


def test_covariances_are_those_of_weighed_inputs():
    plain, found = opened(made()), opened(made(), importance="attention")
    seen = {}
    for name, subject in (("plain", plain), ("weighed", found)):

        def treat(stage, name=name):
            for unit in stage.units:
                seen[name, unit.name] = stage.stats[unit.name]

        Sweep(subject.model, subject.data.calibration, subject.script, treat, needs={Need.COVARIANCE, Need.INPUTS}).finish()
    for unit, block in (
        ("model.layers.1.mlp.down_proj.weight", "model.layers.1"),
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0"),
    ):
        rows = torch.cat(seen["plain", unit].inputs) * torch.cat([each.reshape(-1) for each in factors(found, block)])[:, None]
        assert torch.allclose(seen["weighed", unit].covariance, rows.T @ rows, rtol=1e-3, atol=1e-4)
        assert seen["weighed", unit].count == seen["plain", unit].count
    head = "lm_head.weight"  # outside the blocks all count alike
    assert torch.allclose(seen["weighed", head].covariance, seen["plain", head].covariance)


def test_rows_are_known_however_batches_are_divided_and_others_count_alike():
    ids, draw = torch.randint(0, 9, (4, 5)), torch.rand(4, 5)
    known, value = Important(), torch.randn(2, 5, 3)
    known.add("a", ids, draw)
    assert torch.allclose(known.weighed("a", {"input_ids": ids[1:3]}, value), value * draw[1:3, :, None])
    for other in ({"input_ids": ids[1:3] + 1}, {"pixel_values": value}, (ids,)):
        assert known.weighed("a", other, value) is value
    assert known.weighed("b", {"input_ids": ids[1:3]}, value) is value
    assert torch.stack(list(known.even().blocks["a"].values())).square().mean() == pytest.approx(1)


def test_the_receipt_says_so_and_a_run_is_another(tmp_path):
    lost = {}
    for importance in (None, "attention"):
        result = modicum.fit(
            made(), data=batches(), out=tmp_path / str(importance), target="modicum", method="gptq bits=3 sweeps=0", importance=importance,
            allow_broken=True, allow_fallback=True,
        )  # fmt: skip
        assert result.receipt["request"]["importance"] == importance
        lost[importance] = result.receipt["quality"]["mean"]
    assert lost[None] != lost["attention"]


def test_without_ids_or_attention_it_is_refused():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    with pytest.raises(ModelError, match="must be given token ids to weigh them, is not"):
        Subject.open(module, Settings(compute="float32", importance="attention"), [torch.randn(3, 4) for _ in range(4)])
    config = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    with pytest.raises(ModelError, match="must attend from tokens to tokens within its blocks to weigh them, does not"):
        opened(transformers.AutoModelForCausalLM.from_config(config).eval(), importance="attention")
