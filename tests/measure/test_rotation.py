"""Rotation: the residual stream in another basis, outputs that stay, and norms that forbid it."""

import copy

import pytest
import torch
import transformers
from torch import nn

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.measure.rotation import orthogonal
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject

SIZES = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"num_key_value_heads": 2, "max_position_embeddings": 32}
LLAMA = (transformers.LlamaConfig, SIZES | MORE)


def made(config, sizes, **more):
    """A model whose norms have gains, and biases where they are."""
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config(**sizes, **more), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            if value.ndim == 1:
                value.add_(0.3 * torch.randn(value.shape))
            elif "embed" in name:
                value[:, 5] *= 20
    return module


def batches():
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 64, (2, 16), generator=draw)} for _ in range(6)]


def opened(module, kind="hadamard", **settings):
    return Subject.open(copy.deepcopy(module), Settings(compute="float32", rotate=kind, **settings), batches())


@pytest.mark.parametrize("kind", ["hadamard", "random"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("width", [1, 2, 12, 32, 35])
def test_matrices_are_orthogonal_and_may_keep_the_ones(kind, fixed, width):
    found = orthogonal(width, kind, torch.Generator().manual_seed(0), fixed)
    assert torch.allclose(found @ found.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    if fixed:
        assert torch.allclose(found.sum(1), torch.ones(width, dtype=torch.float64), atol=1e-12)
    elif width == 32 and kind == "hadamard":
        assert torch.allclose(found.abs(), torch.full_like(found, 32**-0.5))


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        LLAMA,
        (transformers.MistralConfig, SIZES | MORE),
        (transformers.Qwen2Config, SIZES | MORE),
        (transformers.Qwen3Config, SIZES | MORE | {"head_dim": 8}),
        (transformers.Phi3Config, SIZES | MORE | {"pad_token_id": 0}),
        (transformers.GPTNeoXConfig, SIZES | {"max_position_embeddings": 32}),
        (transformers.GPT2Config, {"vocab_size": 64, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_outputs_stay_and_no_column_stands_out(config, sizes):
    module = made(config, sizes, tie_word_embeddings=False)
    found = opened(module)
    with torch.no_grad():
        before, after = module(**batches()[0]).logits, found.model.twin().module(**batches()[0]).logits
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())
    values = {name: found.model.weights.read(name) for name in found.model.weights.names}
    table = next(value for name, value in values.items() if name.endswith(("embed_tokens.weight", "embed_in.weight", "wte.weight")))
    reach = table.norm(dim=0)
    assert reach.max() < 3 * reach.median()  # the column that stood out twentyfold
    assert sum("rotation: the stream of 24 columns was turned (hadamard)" in note for note in found.model.notes) == 1


def test_a_norm_whose_gains_cannot_move_is_named():
    with pytest.raises(
        ModelError, match=r"model\.norm must have gains of one where lm_head\.weight reads it, which is tied to model\.embed_tok"
    ):
        opened(made(*LLAMA, tie_word_embeddings=True))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.post_attention_layernorm must give what it makes to weights alone"):
        opened(made(transformers.Gemma2Config, SIZES | MORE | {"head_dim": 8, "pad_token_id": 0}, tie_word_embeddings=False))
    module = made(transformers.GPTNeoXConfig, SIZES | {"max_position_embeddings": 32}, tie_word_embeddings=False)
    with torch.no_grad():
        module.gpt_neox.layers[1].input_layernorm.weight[3] = 0
    with pytest.raises(ModelError, match=r"layers\.1\.input_layernorm must not have gains of zero beside a bias, has some"):
        opened(module)


def test_tied_weights_turn_where_the_last_norm_has_no_gains():
    module = made(*LLAMA, tie_word_embeddings=True)
    nn.init.ones_(module.model.norm.weight)
    found = opened(module, "random")
    with torch.no_grad():
        before, after = module(**batches()[0]).logits, found.model.twin().module(**batches()[0]).logits
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())
    assert found.model.hash() == opened(module, "random").model.hash()


class Tower(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.begin, self.norm, self.inner, self.end = nn.Linear(6, 16), norm, nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.begin(x)
        return self.end(torch.tanh(x + self.inner(self.norm(x))))


def test_what_takes_columns_one_by_one_is_no_stream():
    torch.manual_seed(0)
    data = [torch.randn(4, 6) for _ in range(4)]
    with pytest.raises(ModelError, match="something takes its columns one by one|must give turned inputs turned outputs"):
        Subject.open(Tower(nn.RMSNorm(16)).eval(), Settings(rotate="random", compute="float32"), data)
    with pytest.raises(ModelError, match="must have a stream that its blocks add to, none was found"):
        Subject.open(nn.Sequential(nn.Linear(6, 4)).eval(), Settings(rotate="random", compute="float32"), data)
    with pytest.raises(SettingError, match="hadamard"):
        Settings(rotate="fast")


def test_the_files_hold_an_ordinary_model_that_rounds_better(tmp_path):
    module = made(*LLAMA, tie_word_embeddings=False)
    lost = {}
    for kind in (None, "hadamard"):
        result = modicum.fit(
            copy.deepcopy(module), data=batches(), out=tmp_path / str(kind), target="transformers", method="nearest bits=4 group=0",
            rotate=kind, keep=["lm_head"], allow_broken=True,
        )  # fmt: skip
        assert result.receipt["request"]["rotate"] == kind and result.receipt["verification"]["logits"]["largest"] < 1e-4
        lost[kind] = result.receipt["quality"]["mean"]
    assert lost["hadamard"] < lost[None]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hadamard", dtype="auto")
    assert bool((loaded.model.layers[0].input_layernorm.weight == 1).all())


def test_quality_is_told_against_the_model_as_it_came(tmp_path):
    module = made(*LLAMA, tie_word_embeddings=False).to(torch.bfloat16)
    result = modicum.fit(
        copy.deepcopy(module), data=batches(), out=tmp_path / "a", target="transformers", size="1MB", menu="nearest bits=8", keep=["*"],
        rotate="hadamard",
    )  # fmt: skip
    receipt, beside = result.receipt, modicum.evaluate(tmp_path / "a", reference=copy.deepcopy(module), data=batches()[4:])
    assert receipt["quality"]["mean"] > 0  # nothing was compressed: it is what turning cost
    assert all(row["after"] == 0 for row in receipt["by_block"]["rows"])  # of blocks, which answer turned, it cannot be told
    assert beside["quality"]["mean"] == pytest.approx(receipt["quality"]["mean"], rel=0.1)
