"""Tiny models of many heads, and receipts computed again outside of a run."""

import pytest
import torch

import modicum
from modicum.testing import elsewhere, heads, inputs, outside, tiny, zoo


def test_every_head_is_named_once_and_no_causal_language_model_is():
    names = heads.other_names()
    assert len(names) == len(set(names)) > 300
    assert not set(names) & set(tiny.causal_names())
    assert {"SegformerForSemanticSegmentation", "DetrForObjectDetection", "BertForMaskedLM", "WhisperForConditionalGeneration"} <= set(
        names
    )


def test_pictures_texts_and_sound_are_found_by_trying():
    """Lists in configs, backbones of other packages, and tokens that stand for pictures."""
    wanted = {"SegformerForSemanticSegmentation": {"pixel_values"}, "LlavaForConditionalGeneration": {"input_ids", "pixel_values"}}
    for name, names in wanted.items():
        model, make = tiny.made(name)
        batch = make(torch.Generator().manual_seed(0))
        assert set(batch) == names
        assert sum(value.numel() for value in model.parameters()) < 5_000_000


def test_inputs_that_nobody_knows_are_told():
    class Odd(torch.nn.Module):
        config = None

        def forward(self, something):
            return something

    with pytest.raises(inputs.UnmadeError, match="no input of its forward is known"):
        inputs.maker(Odd())


def test_a_receipt_computed_again_by_plain_modules_is_the_same(tmp_path):
    for name in ("gpt2", "cnn"):
        model, batches = zoo.build(name)
        batches = [{key: value for key, value in batch.items() if "mask" not in key} for batch in batches]  # padding counts like any other
        found = modicum.fit(model, method="nearest bits=4 group=16", data=batches, target="modicum", out=tmp_path / name)
        quality, judged = found.receipt["quality"], outside.judged_batches(batches)
        loaded = modicum.load(tmp_path / name, into=zoo.build(name)[0] if name == "cnn" else None)
        assert abs(outside.divergence(quality, model, loaded, judged) / quality["mean"] - 1) < 1e-3
        with torch.no_grad():
            next(loaded.parameters()).zero_()
        assert abs(outside.divergence(quality, model, loaded, judged) / quality["mean"] - 1) > 0.05


def test_models_of_other_packages_run():
    for name in elsewhere.elsewhere_names()[:2]:
        model, make = elsewhere.made_elsewhere(name)
        assert torch.isfinite(outside.run(model, make(torch.Generator().manual_seed(0))).sample).all()
