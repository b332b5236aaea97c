"""Budgets of what is added hold, or are refused with a figure that would do."""

import json
import re

import pytest
from tests.train.test_auto import rows

from modicum.core.budget import Budget, parse_size
from modicum.core.errors import BudgetError, SettingError
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.adapt import adapt
from modicum.train.bounded import fitting, limits, require_ranks, require_within
from modicum.train.objectives import next_token
from modicum.train.trained import trained


def test_what_is_trained_and_stored_is_counted():
    model, _ = zoo.build("llama")
    with trained(model, "lora rank=2") as t:
        stored = sum(form.nbytes for form in t.forms().values())
        require_within(t, {"values": t.count, "bytes": stored + 700 * len(t.places)})
        with pytest.raises(BudgetError, match=f"trained numbers, and has {t.count:,}"):
            require_within(t, {"values": t.count - 1})
        with pytest.raises(BudgetError, match="bytes, and has"):
            require_within(t, {"bytes": stored - 1})
    assert limits(Budget(params=0.01, size=2000), 10_000) == {"values": 100, "bytes": 2000} and limits(None, 5) == {}


def test_a_rank_above_every_weight_is_refused():
    model, _ = zoo.build("llama")
    most = max(min(place.unit.shape) for place in trained(model, "lora rank=1").places.values())
    require_ranks(trained(model, f"lora rank={most}"))
    require_ranks(trained(model, f"bone rank={most + 1}"))
    for method in ("lora", "dora", "pissa", "adalora"):
        with pytest.raises(SettingError, match=f"adapt/{method}: rank must be at most {most}, .* is {2 * most}"):
            require_ranks(trained(model, f"{method} rank={2 * most}"))


def test_memory_holds_or_is_refused_with_what_would_do():
    model, _ = zoo.build("llama")
    loop = Loop(steps=2, batch=4)
    with trained(model, "lora rank=2") as t:
        with pytest.raises(BudgetError, match="to train one sequence at a time") as told:
            fitting(model, t, rows(), loop, 1000, next_token)
        least = parse_size(re.search(r"at least ([\d.]+ \w+)", str(told.value))[1].replace(" ", ""))
        assert fitting(model, t, rows(), loop, int(1.2 * least), next_token).together >= 1
        assert fitting(model, t, rows(), loop, 100 * least, next_token).together == 4
        assert all(parameter.grad is None for parameter in t.parameters())


def test_auto_is_within_its_bytes(tmp_path):
    loop = Loop(steps=1, batch=2)
    made = adapt("demo", tmp_path / "d", method="auto", size="60kB", tokens=16, samples=12, test_samples=2, loop=loop)
    written = sum(file.stat().st_size for file in made.out.iterdir() if file.name != "receipt.json")
    assert 30_000 < written <= 60_000
    receipt = json.loads((made.out / "receipt.json").read_text())
    assert receipt["plan"] and receipt["budget"] == "60.000 kB" and receipt["trained"] == sum_of(receipt)
    with pytest.raises(SettingError, match="must be told how much may be added"):
        adapt("demo", tmp_path / "e", method="auto", loop=loop)
    with pytest.raises(BudgetError, match="lower its rank|Lower its rank"):
        adapt("demo", tmp_path / "e", method="lora rank=8", params="0.1%", tokens=16, samples=16, test_samples=2, loop=loop)
    assert not (tmp_path / "e").exists()


def sum_of(receipt):
    return receipt["bytes"] // 4


def test_pairs_are_preferred(tmp_path):
    data = tmp_path / "p.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"{at} is", "chosen": " even", "rejected": " odd"}) for at in range(12)))
    made = adapt("demo", tmp_path / "d", method="lora rank=2", data=data, loop=Loop(steps=6, batch=4, rate=1e-2))
    assert made.receipt["per"] == "pair" and made.receipt["test"]["before"] == pytest.approx(0.6931, abs=1e-3)
    assert made.receipt["test"]["after"] < 0.6
