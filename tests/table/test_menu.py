"""The menu: what methods declare, as far as a target and a site can hold it, listed nowhere twice."""

import pytest
import torch

import modicum
from modicum.core.errors import SettingError
from modicum.core.method import Method, registry
from modicum.core.option import Option
from modicum.core.unit import Site, Unit
from modicum.drop._family import SiteCutter, Spanner
from modicum.export import TARGETS
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.quantize._family import Quantizer
from modicum.repair._family import Repairer
from modicum.table.menu import cutters, default_menu, everything, misfit, offered, spanners, weight_options
from modicum.testing import zoo


@pytest.fixture(scope="module")
def subject():
    model, batches = zoo.build("llama")
    return Subject.open(model, Settings(), batches)


def names(menu):
    return {step.key() for option in menu for step in option.steps}


def declared(family):
    return {name for name, method in registry().items() if method.menu and issubclass(method, family)}


def test_every_method_with_a_menu_is_on_it():
    assert names(everything(64)) == declared(Method)
    assert {"quantize/gptq", "drop/ziplm", "drop/blocks", "drop/replaceme", "factor/svd", "repair/eora"} <= declared(Method)


def test_a_method_enters_the_menu_by_declaring_settings(monkeypatch):
    wanda = registry()["prune/wanda"]
    before = {str(option) for option in everything(64)}
    monkeypatch.setattr(wanda, "menu", ({"keep": 0.25}, {"keep": 0.75}))
    assert {str(option) for option in everything(64)} - before == {"wanda keep=0.25", "wanda keep=0.75"}


def test_every_declared_setting_is_one_option():
    texts = [str(option) for option in everything(64)]
    assert len(texts) == len(set(texts))
    alone = [text for text in texts if "|" not in text]
    assert len(alone) == sum(len(method.menu) for method in registry().values() if not issubclass(method, Repairer))
    assert all(Option.parse(text) for text in texts)


def test_repairs_stand_on_few_bits_only():
    repaired = [option for option in everything(64) if any(isinstance(step, Repairer) for step in option.steps)]
    assert repaired
    for option in repaired:
        first, second = option.steps
        assert isinstance(first, Quantizer) and first.bits <= 3 and isinstance(second, Repairer)
    few = [option.steps[0] for option in everything(64) if isinstance(option.steps[0], Quantizer) and option.steps[0].bits <= 3]
    assert {str(step) for step in few} == {str(option.steps[0]) for option in repaired}


def test_transformers_is_offered_widths_its_readers_agree_on(subject):
    bits = lambda target: {step.bits for option in subject.menu(target) for step in option.steps if isinstance(step, Quantizer)}
    assert bits("transformers") == {2, 4, 8} and bits("modicum") == {2, 3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize("group", [32, 64, 128])
def test_groups_are_those_asked_for(subject, group):
    for target in (name for name, each in TARGETS.items() if not each.asked):
        for option in default_menu(subject.target(target), group):
            assert all(step.group == group for step in option.steps if isinstance(step, Quantizer))


def test_menus_fall_into_weights_cuts_and_spans(subject):
    menu = list(everything(64))
    apart = [*weight_options(menu), *(Option((step,)) for step in [*cutters(menu), *spanners(menu)])]
    assert sorted(map(str, apart)) == sorted(map(str, menu))
    assert names([Option((step,)) for step in cutters(menu)]) == {
        name for name, method in registry().items() if method.menu and issubclass(method, SiteCutter)
    }
    assert names([Option((step,)) for step in spanners(menu)]) == {
        name for name, method in registry().items() if method.menu and issubclass(method, Spanner)
    }


def test_a_site_is_offered_what_its_target_can_hold(subject):
    menu = [
        Option.parse(text) for text in ("nearest bits=3 group=64", "nearest bits=3 group=48", "svd keep=0.25", "ziplm keep=0.5", "blocks")
    ]
    own, hf = subject.target("modicum"), subject.target("transformers")
    site = next(site for site in own.sites() if site.name.endswith("0.self_attn.o_proj.weight"))
    assert list(offered(own, site, menu)) == ["keep", *(str(option) for option in menu[:3])]
    assert list(offered(hf, site, menu)) == ["keep", str(Option.parse("nearest bits=3 group=64 symmetric=true"))]


def test_a_site_without_inputs_is_offered_what_needs_none(subject):
    site = next(site for site in subject.target("modicum").sites() if "embed" in site.name)
    free = Site(site.name, site.kind, site.units, data_free="no inputs were seen")
    texts = offered(subject.target("modicum"), free, list(everything(64)))
    assert texts and all(Option.parse(text).data_free for text in texts)
    assert "keep" in texts and any("bits=4" in text for text in texts)


def rows_of(*widths):
    units = tuple(Unit(f"w{width}", f"w{width}", "m", "linear", (8, width), (8, width), torch.float32) for width in widths)
    return Site("s", "unit", units)


def groups(target, site, bits):
    menu = default_menu(target, None)
    found = [option.steps[0] for option in offered(target, site, menu).values() if len(option.steps) == 1]
    return {step.group for step in found if isinstance(step, Quantizer) and step.bits == bits}


@pytest.mark.parametrize(
    "widths, at_four, at_two",
    [
        ((256,), {64, 128, 0}, {64, 32, 0}),
        ((128,), {64, 0}, {64, 32, 0}),
        ((160,), {32, 0}, {32, 0}),
        ((72,), {36, 0}, {36, 0}),
        ((37,), {0}, {0}),
        ((72, 48), {24, 0}, {24, 0}),
    ],
)
def test_every_row_is_offered_a_grid_by_default(subject, widths, at_four, at_two):
    target = subject.target("transformers")
    assert groups(target, rows_of(*widths), 4) == at_four and groups(target, rows_of(*widths), 2) == at_two


def test_a_group_that_is_asked_for_stands_alone(subject):
    target = subject.target("transformers")
    texts = offered(target, rows_of(128), default_menu(target, 128))
    assert {Option.parse(text).steps[0].group for text in texts if "bits=" in text} == {128}


def test_a_group_that_divides_no_row_is_named_with_those_that_do(subject):
    target = subject.target("transformers")
    said = misfit(target, [rows_of(72)], Option.parse("gptq bits=4 group=64"))
    assert said == "group 64 does not divide rows of 72: use group=18, 24, 36, 72, 0 (0: whole rows)"
    assert not misfit(target, [rows_of(72)], Option.parse("gptq bits=4 group=24"))
    assert not misfit(target, [rows_of(72)], Option.parse("float8"))


@pytest.mark.parametrize("option, told", [("flap keep=0.5", "whole model"), ("ziplm keep=0.5 | gptq bits=4", "one step")])
def test_what_is_no_choice_for_a_part_is_refused(option, told):
    model, batches = zoo.build("llama")
    with pytest.raises(SettingError, match=told):
        modicum.measure(model, data=batches, menu=["nearest bits=4", option], out="unused")
