"""Smoothing: inputs' columns reach less far apart, the weights that read them further, and the model is the same to the bit."""

import copy

import pytest
import torch
import transformers
from torch import nn

import modicum
from modicum.core.method import Need
from modicum.judge.quality import streamed
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.sweep import Sweep


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=64, max_position_embeddings=32)
    module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for layer in module.model.layers:
            layer.input_layernorm.weight[3] *= 50
            layer.post_attention_layernorm.weight[5] *= 50
            layer.mlp.up_proj.weight[7] *= 50
    return module, [{"input_ids": torch.randint(3, 64, (2, 16))} for _ in range(6)]


def subject(module, batches, **settings):
    compute = "bfloat16" if next(module.parameters()).dtype == torch.bfloat16 else "float32"
    return Subject.open(copy.deepcopy(module), Settings(compute=compute, **settings), batches)


def reach(found):
    """The largest magnitude of each column of every linear's input and weight."""
    inputs, weights = {}, {}

    def treat(stage):
        for unit in stage.units:
            if stage.stats[unit.name].inputs:
                inputs[unit.name] = torch.cat(stage.stats[unit.name].inputs).abs().amax(0).float()
                weights[unit.name] = found.model.matrix(unit).abs().amax(0).float()

    Sweep(found.model, found.data.calibration, found.script, treat, needs={Need.INPUTS}).finish()
    return inputs, weights


def test_columns_are_divided_by_the_papers_factor_to_the_nearest_octave(model):
    before, after = subject(*model), subject(*model, smooth=0.5)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        (x, w), (smoothed, _) = (reach(each) for each in (before, after))
        readers = [each for each in before.script.stage_of(name)]
        weights = torch.stack([before.model.matrix(before.model.units[each]).abs().amax(0).float() for each in readers]).amax(0)
        ideal = 0.5 * x[name].log2() - 0.5 * weights.log2()
        moved = (x[name] / smoothed[name]).log2()
        assert torch.equal(moved, moved.round())
        if "mlp.up" not in name:  # its rows moved before its columns did, to smooth what reads them
            assert float((moved - (ideal - ideal.median())).abs().max()) <= 0.5 + 1e-4
        assert smoothed[name].max() / smoothed[name].median() < 0.5 * x[name].max() / x[name].median()


def test_outputs_are_the_same_bits(model):
    found = subject(*model, smooth=0.7)
    for batch in model[1]:
        with torch.no_grad():
            assert torch.equal(found.model.twin().module(**batch).logits, model[0](**batch).logits)
    assert found.model.hash() == subject(*model).model.hash()  # it is the same model
    (told,) = [note for note in found.model.notes if note.startswith("smoothing")]
    assert told == (
        "smoothing: factors moved into what makes the input of 8 sets of weights (alpha 0.7); of 1 nothing makes it alone: lm_head.weight."
    )


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.second(torch.tanh(self.first(self.norm(x))))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_what_bends_a_factor_keeps_it_where_it_is():
    torch.manual_seed(0)
    module, batches = Tower().eval(), [torch.randn(4, 6, 16) * torch.logspace(-1, 1, 16) for _ in range(4)]
    found = subject(module, batches, smooth=0.5)
    (told,) = [note for note in found.model.notes if note.startswith("smoothing")]
    assert told.startswith("smoothing: factors moved into what makes the input of 2 sets") and "blocks.0.second.weight" in told
    ((_, output),) = streamed(found.model, found.data.test[:1], found.script)
    assert torch.equal(output, module(*found.data.test[0]))


def test_eight_bits_lose_less_and_the_files_have_what_moved(model, tmp_path):
    lost = {}
    for smooth in (None, 0.5):
        result = modicum.fit(
            copy.deepcopy(model[0]), data=model[1], out=tmp_path / str(smooth), target="transformers", method="nearest bits=8 group=0",
            activations="int8", smooth=smooth, compute="bfloat16",
        )  # fmt: skip
        lost[smooth] = result.receipt["quality"]["mean"]
        assert result.receipt["request"]["smooth"] == smooth and result.receipt["verification"]["logits"]["largest"] < 1e-6
    assert lost[0.5] < 0.7 * lost[None]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "0.5", dtype="auto")
    ratio = loaded.model.layers[0].input_layernorm.weight / model[0].model.layers[0].input_layernorm.weight
    assert torch.equal(ratio.log2(), ratio.log2().round()) and ratio[3] < 1 < len(ratio.unique())


def test_numbers_that_would_lose_digits_stay(model):
    module = copy.deepcopy(model[0]).half()
    with torch.no_grad():
        module.model.layers[1].input_layernorm.weight[4] = 2.0**-24  # the smallest there is
    found = subject(module, model[1], smooth=1.0)
    assert "smoothing: was left out, the model with moved factors does not give the outputs of before." in found.model.notes
