"""What options may say is read off the methods' files: it must be what the methods themselves say."""

import dataclasses

import pytest

from modicum.core import grammar
from modicum.core.errors import SettingError
from modicum.core.grammar import of_room
from modicum.core.method import registry
from modicum.core.option import Option
from modicum.core.recipe import ROOMS, recipes
from modicum.core.settings import hints


@pytest.mark.parametrize("key", sorted(registry()))
def test_the_outline_of_a_method_has_its_name_fields_bounds_and_types(key):
    cls, outline = registry()[key], grammar.outlines()[key]
    said = lambda one: [(field.name, field.default, dict(field.metadata)) for field in dataclasses.fields(one)]
    assert outline.__name__ == cls.__name__ and said(outline) == said(cls)
    assert {name: hints(cls)[name] for name in hints(outline)} == hints(outline)


def test_there_is_an_outline_of_every_method_and_of_nothing_else():
    assert {key for key, cls in registry().items() if cls.__module__.startswith("modicum.")} == grammar.outlines().keys()


@pytest.mark.parametrize(
    "text",
    [
        "gpt bits=3", "gptq bit=3", "gptq bits=9", "gptq bits=x", "gptq bits", "nearest bits=3 bits=4", "svd rank=0", "gptq order=up",
        "magnitude keep=2", "gptq | | eora", "gptq 'bits", "x" * 1001, "eora rank=8", "gptq bits=4 | gptq bits=3", "wanda | svd rank=2 | eora",
        "float8 | activations | activations",
    ],
)  # fmt: skip
def test_a_slip_is_told_in_the_same_words_with_and_without_the_methods(monkeypatch, text):
    with pytest.raises(SettingError) as later:
        Option.parse(text)
    monkeypatch.setattr(registry, "cache_info", lambda: type("Empty", (), {"currsize": 0}), raising=False)
    with pytest.raises(SettingError) as early:
        grammar.check(text)
    assert str(early.value) == str(later.value)


@pytest.mark.parametrize(
    "text",
    [
        "keep",
        "int4",
        "fp8",
        "gptq bits=3 group=64 | eora rank=8",
        "prune/wanda keep=0.5",
        "svd rank=none",
        "ziplm | gptq | eora",
        "gptq bits=8 group=0 | activations",
    ],
)
def test_what_is_right_passes(text):
    grammar.check(text)


@pytest.mark.parametrize("room", ROOMS)
def test_methods_of_a_room_are_read_off_their_files_as_they_are(room):
    known = of_room(room)
    assert known.keys() == recipes(room).keys()
    for name, cls in recipes(room).items():
        said = lambda value: [(field.name, field.default, dict(field.metadata)) for field in dataclasses.fields(value)]
        assert said(known[name]) == said(cls)
