"""Spans: those that change least, of each length, with the divergence that leaving them out really costs."""

import copy
import json

import pytest
import torch

import modicum
from modicum.core.errors import ModelError, UnsuitableError
from modicum.drop.blocks import Blocks
from modicum.drop.replaceme import Replaceme
from modicum.judge.quality import compare, plain
from modicum.measure import spans as spanning
from modicum.measure.settings import Settings
from modicum.measure.spans import best_spans, measure_spans
from modicum.measure.subject import Subject
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Structural
from modicum.testing import zoo


def opened(name="llama", layers=None):
    model, batches = zoo.build(name)
    if layers is not None:
        config = copy.deepcopy(model.config)
        config.num_hidden_layers = layers
        torch.manual_seed(0)
        model = type(model)(config).eval()
    return Subject.open(model, Settings(), batches)


STEPS = (Blocks(), Replaceme())


def measured(subject, steps=STEPS, known=None, done=lambda found: None):
    data = subject.data
    return measure_spans(
        subject.model, subject.script, steps, data.calibration, data.validation, SpillPool(None, None), 0, known, done
    )  # fmt: skip


@pytest.fixture(scope="module")
def nine():
    subject = opened(layers=9)
    return subject, measured(subject)


def test_lengths_go_up_to_a_third_of_the_blocks(nine):
    _, found = nine
    lengths = {text: len(span.blocks) for text, span in found.items()}
    assert sorted(lengths.values()) == [1, 1, 2, 2, 3, 3]
    assert all(f"count={count} " in text and span_starts(text, found[text]) for text, count in lengths.items())


def span_starts(text, span):
    return span.blocks[0] == f"model.layers.{text.rpartition('first=')[2]}"


def test_each_length_has_the_span_that_changes_least(nine):
    subject, _ = nine
    pool = SpillPool(None, None)
    states = []
    handles = [
        layer.register_forward_hook(lambda *arguments: states.append(arguments[2][0] if isinstance(arguments[2], tuple) else arguments[2]))
        for layer in subject.model.module.model.layers
    ]
    batch = subject.data.validation[0]
    list(plain(subject.model.module, [batch]))
    for handle in handles:
        handle.remove()
    distance = lambda a, b: 1 - float(torch.nn.functional.cosine_similarity(states[a], states[b], dim=-1).mean())
    for span in best_spans(subject.model, subject.script, [batch], pool):
        first, count = subject.script.blocks.index(span[0]), len(span)
        twin = min(range(1, 10 - count), key=lambda start: distance(start - 1, start + count - 1))
        assert first == twin


def test_the_harm_is_the_divergence_of_the_model_without_the_blocks(nine):
    subject, found = nine
    (text,) = [text for text in found if text.startswith("blocks count=2")]
    without, batches = copy.deepcopy(subject.model.module), subject.data.validation
    gone = {int(name.rpartition(".")[2]) for name in found[text].blocks}
    without.model.layers = torch.nn.ModuleList(layer for place, layer in enumerate(without.model.layers) if place not in gone)
    real = compare(plain(subject.model.module, batches), plain(without, batches), batches, False).divergence
    assert found[text].harm == pytest.approx(sum(real) / len(real), rel=1e-4)


def test_the_option_gives_back_the_span_that_was_measured(nine):
    """A plan that names it drops the very blocks, whatever data it sees."""
    subject, found = nine
    for text, span in found.items():
        (step,) = modicum.Option.parse(text).steps
        change = step.reshape(subject.model, subject.script, subject.data.test, SpillPool(None, None))
        assert list(change.dropped) == span.blocks


def test_what_was_measured_is_not_measured_again(nine, monkeypatch):
    subject, found = nine
    text, span = next(iter(found.items()))
    known, seen = {text: Structural(span.kept, span.blocks, -1.0)}, []
    again = measured(subject, known=known, done=lambda found: seen.append(json.dumps({text: vars(span) for text, span in found.items()})))
    assert again[text].harm == -1.0 and {other: again[other] for other in found if other != text} == {
        other: found[other] for other in found if other != text
    }
    assert len(seen) == len(found) - 1
    monkeypatch.setattr(spanning, "streamed", None)
    assert measured(subject, known=found) == found


def test_a_method_that_cannot_stand_in_is_left_out(nine, monkeypatch):
    subject, _ = nine

    def refuse(*_, **__):
        raise UnsuitableError("cannot.")

    monkeypatch.setattr(Replaceme, "reshape", refuse)
    assert {text.split()[0] for text in measured(subject)} == {"blocks"}


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_model_without_blocks_has_no_spans(name):
    assert measured(opened(name)) == {}


def test_no_method_means_no_spans_and_no_work(monkeypatch):
    subject = opened()
    monkeypatch.setattr(spanning, "every_change", None)
    assert measured(subject, steps=()) == {}


def test_biases_that_change_are_named():
    found = measured(opened("gpt2"))
    assert {text.split()[0]: span.biases for text, span in found.items()} == {
        "blocks": [], "replaceme": [f"transformer.h.{int(next(iter(found.values())).blocks[0].rpartition('.')[2]) - 1}.mlp.c_proj"],
    }  # fmt: skip


def test_any_other_error_of_a_method_is_told(monkeypatch):
    def unreadable(*_, **__):
        raise ModelError("what happened.")

    monkeypatch.setattr(Replaceme, "reshape", unreadable)
    with pytest.raises(ModelError, match="what happened"):
        measured(opened())


def test_longer_spans_are_not_measured_where_the_shortest_are_hopeless():
    subject, told = opened(layers=9), []
    data = subject.data
    found = measure_spans(
        subject.model, subject.script, (Blocks(),), data.calibration, data.validation[:1], SpillPool(None, None), 0,
        hopeless=lambda least: told.append(least) or True,
    )  # fmt: skip
    assert [len(span.blocks) for span in found.values()] == [1] and told == [span.harm for span in found.values()]
