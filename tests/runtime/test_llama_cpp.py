"""Memory in llama.cpp: the figures are those that its loader (0.3.36 of the Python binding) tells of the same files."""

import pytest

import modicum
from modicum.core.errors import BudgetError, SettingError
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.testing import spelling

MB = 2**20
# Class, config, tokens, sequences; keys and values or states, and what is computed in, as told.
TOLD = [
    ("LlamaForCausalLM", {}, 512, 1, 0.19, 1.64),
    ("LlamaForCausalLM", {}, 4096, 1, 1.50, 5.14),
    ("LlamaForCausalLM", {"hidden_size": 256, "intermediate_size": 2048}, 512, 1, 0.19, 14.14),
    ("GPT2LMHeadModel", {}, 512, 1, 0.38, 1.26),
    ("FalconForCausalLM", {}, 4096, 1, 0.75, 5.01),
    ("MambaForCausalLM", {}, 512, 1, 0.03, 1.64),
]


COMMON = {"samples": 2, "tokens": 32, "test_samples": 1}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("to be or not to be, that is the question; " * 40)
    return str(path)


@pytest.mark.parametrize("name, config, context, batch, kept, computed", TOLD)
def test_buffers_are_no_smaller_than_told(name, config, context, batch, kept, computed, text, tmp_path):
    spelling.checkpoint(name, tmp_path / "model", **config)
    runtime = Subject.open(str(tmp_path / "model"), Settings(data=text, **COMMON)).runtime("gguf", batch, context, {})
    assert (runtime.cache() + runtime.states()) / MB == pytest.approx(kept, abs=0.006)
    assert computed - 0.01 <= runtime.activations() / MB <= 1.6 * computed


def test_weights_take_what_they_take_in_the_file(text, tmp_path):
    """Whole as they are they do not fit, and nothing of the kind could in PyTorch."""
    spelling.checkpoint("LlamaForCausalLM", tmp_path / "model")
    subject = Subject.open(str(tmp_path / "model"), Settings(data=text, **COMMON))
    beside, whole = subject.runtime("gguf", 1, 512, {}).overhead(), subject.model.dense_bytes
    run = lambda share: modicum.fit(
        str(tmp_path / "model"), memory=beside + int(share * whole), context=512, target="gguf", harm="error", search_time=0, data=text,
        menu="ggml type=q4_0 rounding=nearest,ggml type=q8_0 rounding=nearest", out=tmp_path / "out", overwrite=True, **COMMON,
    )  # fmt: skip
    spent = run(0.4).receipt
    assert spent["bytes"]["actual"] < spent["bytes"]["original"]
    with pytest.raises(BudgetError, match=r"cannot be reached, the smallest for .* MB of it cache and activations\. Allow more"):
        run(0.01)


def test_time_is_refused():
    with pytest.raises(SettingError, match="is timed in PyTorch, where target gguf does not run"):
        modicum.fit("demo", speed="1.5x", target="gguf", **COMMON)
