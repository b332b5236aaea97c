import dataclasses

import pytest
import torch

from modicum.core.unit import Stats
from modicum.numerics.waterfill import least_bits
from modicum.quantize import Coded, Gptq, Nearest, Watersic
from modicum.table.findings import Finding, Findings
from modicum.table.waste import beyond, least_of, wasted


def test_no_option_is_below_the_reference_and_an_entropy_coder_is_nearest(layer):
    thing, waste = layer(256, 128), {}
    for method in (Watersic(rate=3.0), Coded(rate=3.0), Gptq(bits=3, group=64), Nearest(bits=3, group=64)):
        form = thing.apply(method)
        least = least_of(thing.unit, thing.weight - form.dense(), thing.stats(), thing.weight)
        waste[type(method).__name__] = 8 * form.nbytes / thing.weight.numel() - least
    assert 0 < waste["Watersic"] < 0.45 < waste["Coded"] < waste["Nearest"] and waste["Watersic"] < waste["Gptq"] < waste["Nearest"]


def test_it_is_told_by_the_spectrum_of_the_inputs_that_were_seen(layer):
    thing = layer(16, 32, tokens=200)
    stats, error = thing.stats(), 0.01 * torch.randn(16, 32)
    seen = thing.inputs.double()
    lost = float((error.double() @ seen.T).square().sum()) / 200
    known = least_bits(torch.linalg.eigvalsh(seen.T @ seen / 200), thing.weight.square().mean(1), lost)
    assert least_of(thing.unit, error, stats, thing.weight) == pytest.approx(known, rel=1e-4)
    assert least_of(thing.unit, error, Stats(), thing.weight) is None
    assert least_of(thing.unit, torch.zeros(16, 32), stats, thing.weight) is None


def test_medians_by_option_and_earlier_measurements_have_none():
    told = lambda bits, least: Finding(0.1, 0.1, 0.1, bits=bits, least=least)
    units = {"a": {"x": told(3.0, 2.0), "y": Finding(None, 0, 0)}, "b": {"x": told(3.5, 2.0)}, "c": {"x": told(4.0, 3.5)}}
    assert wasted(units) == {"x": {"weights": 3, "bits": 3.5, "wasted": 1.0}}
    value = Findings(units={"a": {"x": Finding(0.1, 0.2, 0.3)}}).to_json()
    for name in ("bits", "least"):
        del value["units"]["a"]["x"][name]
    del value["raised"]
    assert Findings.from_json(value).units["a"]["x"] == Finding(0.1, 0.2, 0.3) and wasted(Findings.from_json(value).units) == {}


def test_a_site_is_beyond_by_all_of_its_weights_or_tells_nothing(layer):
    one, other = layer(16, 32).unit, layer(48, 32).unit
    told = {one.name: {"x": Finding(0.1, 0.1, 0.1, bits=3.0, least=2.0), "y": Finding(0.1, 0.1, 0.1)}}
    assert beyond(told, [one], "x") == 1.0 and beyond(told, [one], "y") is None and beyond(told, [one], "z") is None
    two = dataclasses.replace(other, name="other")
    assert beyond(told, [one, two], "x") is None
    assert beyond(told | {"other": {"x": Finding(0.1, 0.1, 0.1, bits=3.0, least=2.6)}}, [one, two], "x") == pytest.approx(0.55)
