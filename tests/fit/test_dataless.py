"""What a plan makes without data: the stand-ins of its options, in their bytes."""

import pytest
import torch

from modicum.core.option import Option
from modicum.core.unit import Site, Stats
from modicum.fit.dataless import Dataless
from modicum.forms import Dense
from modicum.models.open import open_model
from modicum.testing import zoo


@pytest.mark.parametrize("text", ["gptq bits=3 group=32", "watersic rate=3", "gptq bits=3 group=32 | eora rank=2"])
def test_options_that_need_data_give_way_to_what_needs_none_in_as_many_bytes(text):
    model = open_model(zoo.build("mlp")[0])
    unit = next(unit for unit in model.units.values() if unit.shape[1] % 32 == 0)
    inputs = torch.randn(512, unit.shape[1])
    stats = Stats(count=512, total=inputs.sum(0), square=inputs.square().sum(0), covariance=inputs.T @ inputs, reference=model.matrix(unit))
    option, weight = Option.parse(text), Dense(model.matrix(unit))
    made = option.apply(Site(unit.name, "unit", (unit,)), {unit.name: stats}, {unit.name: weight}).forms
    found = Dataless(model, made, {unit.name: option}, {})
    assert set(found.options) == {unit.name} and list(found) == [unit.name]
    assert found[unit.name].nbytes == made[unit.name].nbytes
    assert not torch.equal(found[unit.name].dense(), made[unit.name].dense())
    assert torch.equal(found[unit.name].dense(), found[unit.name].dense())


def test_what_needs_no_data_stays():
    model = open_model(zoo.build("mlp")[0])
    unit = next(iter(model.units.values()))
    made = {unit.name: Dense(model.matrix(unit) + 1)}
    found = Dataless(model, made, {unit.name: Option.parse("nearest bits=4")}, {})
    assert not found.options and found[unit.name] is made[unit.name]
