"""What is told from headers alone is what a rehearsal of the weights shows."""

import pytest
import torch

from modicum.core.errors import SettingError
from modicum.models.open import open_model
from modicum.models.quiet import hushed
from modicum.sweep import rehearse
from modicum.sweep.coupling import coupled_cuts
from modicum.sweep.outline import alike, outlined, stand_in
from modicum.testing import zoo

SEEN = ("stages", "block_of", "blocks", "reused", "uncalled", "opaque", "stacks", "droppable", "tuples", "read")


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "albert", "bert", "t5", "whisper", "clip", "qwen3_moe", "jamba"])
def test_an_outline_shows_what_a_rehearsal_does_and_reads_no_weight(tmp_path, name, monkeypatch):
    module, batches = zoo.build(name)
    with hushed():
        module.save_pretrained(tmp_path)
        model = open_model(tmp_path)
        script = rehearse(model, batches[0])
        cuts = coupled_cuts(model, script, batches[0])
        other = open_model(tmp_path)
        monkeypatch.setattr(type(other.weights), "_value", lambda self, first: pytest.fail(f"{first} was read"))
        found, their = outlined(other, batches[0])
    assert {part: getattr(found, part) for part in SEEN} == {part: getattr(script, part) for part in SEEN}
    assert [(site.name, site.axes) for site in their] == [(site.name, site.axes) for site in cuts]
    assert list(other.units) == list(model.units) and other.weights.stand_in is None


def test_what_is_not_in_the_output_is_refused_from_headers_alone(tmp_path):
    module, batches = zoo.build("bert")
    with hushed():
        module.save_pretrained(tmp_path)
    for words, said in (({"output": "logit"}, "Did you mean"), ({"classes": "9"}, "must be an axis of logits")):
        with pytest.raises(SettingError, match=said):
            outlined(open_model(tmp_path), batches[0], **words)


def test_blocks_that_are_built_alike_run_once(tmp_path):
    module, batches = zoo.build("gemma2")
    with hushed():
        module.save_pretrained(tmp_path)
        model = open_model(tmp_path)
    names = list(model.blocks)
    assert alike(model) == {names[2]: names[0]}  # sliding, full, sliding attention


def test_stand_ins_take_no_memory_to_speak_of():
    value = stand_in("w", (50_000, 20_000), torch.float32)
    assert value.shape == (50_000, 20_000) and value.untyped_storage().nbytes() == 80_000
    stack = stand_in("s", (64, 512, 512), torch.bfloat16)
    assert stack.shape == (64, 512, 512) and stack[1].data_ptr() != stack[0].data_ptr()
    assert stand_in("b", (), torch.float32).shape == () and stand_in("n", (3,), torch.int64).dtype == torch.int64
