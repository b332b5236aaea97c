"""The error of every block, told beside what hooks on the modules show."""

from contextlib import ExitStack

import pytest
import torch

from modicum.forms import Dense
from modicum.judge.blocks import BlockErrors
from modicum.judge.quality import compare, streamed
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


def world(name):
    module, batches = zoo.build(name)
    model = open_model(module)
    return model, batches, rehearse(model, batches[0])


def told(model, batches, script, forms, **changed):
    blocks = BlockErrors(script, batches, SpillPool(None))
    original = streamed(model.twin(), batches, script, on_block=blocks.keep)
    compare(original, streamed(model, batches, script, forms, on_block=blocks.of("after"), **changed), batches, False, script.outputs)
    return blocks.told()


def hooked(model, batch, forms):
    """The block outputs (rows, tokens, columns) of the module with other weights, by block."""
    found, module = {}, model.module
    before = {name: model.weights.parameter(name).detach().clone() for name in forms}
    with ExitStack() as stack, torch.no_grad():
        for name, block in module.named_modules():
            if name in model.blocks:
                keep = lambda _, given, out, name=name: found.update({name: (out[0] if isinstance(out, tuple) else out).clone()})
                stack.callback(block.register_forward_hook(keep).remove)
        for name, form in forms.items():
            model.weights.parameter(name).copy_(form.dense())
        module(**batch)
        for name, value in before.items():
            model.weights.parameter(name).copy_(value)
    return found


def noisy(model, part):
    """Some weights with noise of a hundredth."""
    chance = torch.Generator().manual_seed(0)
    weights = {name: model.matrix(unit) for name, unit in model.units.items() if part in name}
    return {name: Dense(value + 0.01 * torch.randn(value.shape, generator=chance)) for name, value in weights.items()}


def test_errors_are_those_of_the_modules_outputs():
    model, batches, script = world("llama")
    forms = noisy(model, "layers.1.mlp.down")
    rows = told(model, batches[:1], script, forms)["rows"]
    before, after = hooked(model, batches[0], {}), hooked(model, batches[0], forms)
    for row in rows:
        expected = ((after[row["block"]] - before[row["block"]]).norm(dim=-1) / before[row["block"]].norm(dim=-1)).mean()
        assert row["after"] == pytest.approx(float(expected), rel=1e-4, abs=1e-7)
    assert [row["after"] > 0 for row in rows] == [row["block"] >= "model.layers.1" for row in rows] and len(rows) == len(model.blocks)


def test_padding_counts_nowhere():
    model, batches, script = world("bert")
    forms = noisy(model, "layer.0.output.dense")
    batch = batches[0]
    assert bool((batch["attention_mask"] == 0).any()), "the zoo's texts are padded"
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 0, batch["input_ids"] * 0 + 7, batch["input_ids"])}
    assert told(model, [batch], script, forms) == told(model, [other], script, forms)


def test_a_block_that_is_left_out_has_no_error_and_the_next_has():
    model, batches, script = world("llama")
    gone = script.blocks[1]
    rows = {row["block"]: row["after"] for row in told(model, batches, script, {}, dropped=frozenset({gone}))["rows"]}
    assert rows[script.blocks[0]] == 0 and rows[gone] is None and rows.get(script.blocks[2], 1) > 0


def test_no_more_is_kept_than_a_few_tokens_of_a_few_rows():
    model, batches, script = world("llama")
    long = {"input_ids": batches[0]["input_ids"][:1].repeat(3, 300 // batches[0]["input_ids"].shape[1])}
    found = told(model, [long] * 4, script, noisy(model, "down"))
    assert found["sequences"] == 9 and found["tokens"] == 9 * 64
