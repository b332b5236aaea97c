import re

import pytest
import torch
from torch import nn

import modicum
from modicum.core.errors import SettingError
from modicum.core.method import Need
from modicum.core.plan import Plan
from modicum.core.unit import Stats
from modicum.quantize import Gptq, Gptvq, Kmeans

SHAPE = (128, 64)


def lost(thing, form):
    error = form.dense().float() - thing.weight.float()
    return float(((error @ thing.inputs.T) ** 2).sum())


@pytest.mark.parametrize("settings", [{"dimension": 1, "bits": 2}, {"bits": 4}, {"bits": 4, "dimension": 4, "stages": 2}], ids=str)
def test_absorbing_errors_and_moving_all_in_turn_each_lose_less(layer, settings):
    thing = layer(*SHAPE)
    plain, absorbed, moved = (
        lost(thing, thing.apply(method)) for method in (Kmeans(**settings), Gptvq(**settings, rounds=0), Gptvq(**settings))
    )
    assert moved < 0.95 * absorbed < 0.7 * plain


def test_vectors_lose_less_than_numbers_and_than_integers_of_more_bytes(layer):
    thing = layer(*SHAPE)
    numbers, vectors = thing.apply(Gptvq(bits=2, dimension=1)), thing.apply(Gptvq(bits=4, dimension=2))
    integers = thing.apply(Gptq(bits=2, group=32, symmetric=True))
    assert vectors.nbytes <= numbers.nbytes + 64 < integers.nbytes
    assert lost(thing, vectors) < 0.95 * lost(thing, numbers) and lost(thing, vectors) < lost(thing, integers)


def test_without_correlation_and_rounds_it_is_kmeans(layer):
    thing = layer(*SHAPE)
    stats = Stats(count=9, covariance=torch.eye(64))
    assert torch.equal(thing.apply(Gptvq(rounds=0), stats=stats).dense(), thing.apply(Kmeans()).dense())


def test_a_last_vector_that_is_not_whole_and_columns_with_codebooks_of_their_own(layer):
    for columns, settings in ((63, {"dimension": 4}), (64, {"dimension": 4, "columns": 32}), (65, {"columns": 32})):
        thing = layer(96, columns)
        form = thing.apply(Gptvq(bits=5, **settings))
        assert form.shape == (96, columns) and lost(thing, form) < lost(thing, thing.apply(Kmeans(bits=5, **settings)))
        assert form.nbytes == sum(tensor.nbytes for tensor in form.tensors().values())


def test_a_covariance_in_blocks_serves(layer):
    from modicum.core.blocks import Blocks

    thing = layer(96, 64)
    blocks = Blocks(tuple(torch.eye(size) + 0.5 for size in (31, 33)))
    form, plain = (thing.apply(method, stats=Stats(count=9, blocks=blocks)) for method in (Gptvq(bits=4), Gptvq(bits=4, rounds=0)))
    cost = lambda form: float((((form.dense() - thing.weight) @ blocks) * (form.dense() - thing.weight)).sum())
    assert cost(form) < cost(plain)


@pytest.mark.parametrize("weight", [torch.zeros(48, 64), torch.full((48, 64), 3.0), torch.randn(48, 64) * 1e-30, torch.eye(48, 64) * 1e30])
def test_odd_weights(layer, weight):
    thing = layer(48, 64)
    thing.weight = weight
    for method in (Kmeans(bits=4), Gptvq(bits=4)):
        assert thing.apply(method).finite()


def test_what_is_worth_no_codebook_is_refused_in_words(layer):
    with pytest.raises(SettingError, match="layer.weight: codebooks must be smaller .* 1×1×256×8 numbers take 4096 bytes and it has 1024"):
        layer(8, 32).apply(Gptvq(bits=8, dimension=8))
    with pytest.raises(SettingError, match="columns must be a multiple of dimension 4, is 30. Take 28"):
        layer().apply(Kmeans(dimension=4, columns=30))


def test_of_a_method_everywhere_small_weights_stay_as_they_are_and_a_model_of_none_else_is_refused_before_any_work(tmp_path):
    net, data = nn.Sequential(nn.Linear(16, 256), nn.Linear(256, 4)), [(torch.randn(16, 16),) for _ in range(4)]
    run = lambda method, **words: modicum.fit(net, data=data, method=method, target="modicum", allow_broken=True, **words)
    for words in ({"dry_run": True}, {"out": tmp_path / "none"}):
        with pytest.raises(SettingError, match="codebooks must be smaller than the weights, .* any of this model's 2. Take fewer bits"):
            run("kmeans bits=8 dimension=16 stages=4", **words)
    assert not list(tmp_path.iterdir())
    receipt = run("kmeans bits=8 dimension=8", out=tmp_path / "out").receipt
    assert [site["site"] for site in receipt["sites"] if site["option"] not in ("", "keep")] == ["0.weight"]
    assert any("stay as they are: 1.weight." in event for event in receipt["events"])


@pytest.mark.parametrize("words", [{"dry_run": True}, {}], ids=["dry", "run"])
def test_a_plan_and_a_rule_that_name_them_for_a_small_weight_are_refused_before_any_work(tmp_path, words):
    net, data = nn.Sequential(nn.Linear(16, 256), nn.Linear(256, 4)), [(torch.randn(16, 16),) for _ in range(4)]
    plan = Plan("modicum", {"1.weight": "gptvq bits=8 dimension=8"})
    small = "1.weight: codebooks must be smaller than the weight, 1×1×256×8 numbers take 4096 bytes and it has 4096. Take fewer bits"
    for asked in ({"plan": plan}, {"method": "gptq", "set": ["1: gptvq bits=8 dimension=8"]}):
        with pytest.raises(SettingError, match=f"(plan|set).* cannot be: {re.escape(small)}"):
            modicum.fit(net, data=data, target="modicum", allow_broken=True, out=tmp_path / "none", **asked, **words)
    assert not list(tmp_path.iterdir())


def test_few_bits_ask_for_drift():
    assert Need.DRIFT in Gptvq(bits=6).wanted() and Need.DRIFT not in Gptvq(bits=7).wanted() | Gptvq(towards=0.0).wanted()


def test_it_stands_on_a_menu_beside_others_and_its_bytes_are_exact(tmp_path):
    net, data = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)), [(torch.randn(16, 32),) for _ in range(4)]
    asked = modicum.fit(net, data=data, bpw=6.0, menu="gptvq bits=4, gptq bits=3 group=32", target="modicum", dry_run=True).receipt
    assert all("gptvq bits=4" in site["options"] for site in asked["sites"])
    made = modicum.fit(net, data=data, method="gptvq bits=4", target="modicum", out=tmp_path / "out", allow_broken=True).receipt["bytes"]
    assert made["actual"] == made["predicted"] < 0.2 * made["original"]
