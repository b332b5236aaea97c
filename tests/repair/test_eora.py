import pytest
import torch

from modicum.core.errors import SettingError
from modicum.forms import Dense, LowRank, Sum
from modicum.forms.form import restore
from modicum.prune import Magnitude
from modicum.quantize import Gptq, Nearest
from modicum.repair import Eora


@pytest.mark.parametrize("before", [Nearest(bits=2), Nearest(bits=3), Magnitude(keep=0.4)], ids=str)
@pytest.mark.parametrize("rank", [2, 8])
def test_output_error_is_below_plain_svd_and_that_below_none(layer, before, rank):
    thing = layer(32, 96)
    none, plain, ours = (thing.error(thing.apply(before, *after)) for after in ((), (Eora(rank=rank, whiten=False),), (Eora(rank=rank),)))
    assert ours < 0.9 * plain and plain < none


def test_weight_error_is_the_other_way_round(layer):
    thing = layer()
    lost = lambda **settings: float((thing.apply(Nearest(bits=2), Eora(rank=4, **settings)).dense() - thing.weight).norm())
    assert lost(whiten=False) < lost()


def test_no_repair_of_that_rank_serves_the_outputs_better(layer):
    thing = layer()
    error = (thing.weight - thing.apply(Nearest(bits=2)).dense()).double()
    repaired = thing.apply(Nearest(bits=2), Eora(rank=6))
    lost = thing.inputs.double() @ (thing.weight - repaired.dense()).double().T
    values = torch.linalg.svdvals(thing.inputs.double() @ error.T)
    assert float(lost.norm()) == pytest.approx(float(values[6:].square().sum().sqrt()), rel=1e-2)


def test_it_reduces_to_plain_svd_where_inputs_are_white(layer):
    thing = layer()
    error, stats = torch.randn(24, 96), thing.stats()
    stats.covariance = 5 * torch.eye(96)
    white, plain = (Eora(rank=3, whiten=whiten).repair(error, stats, torch.float32).dense() for whiten in (True, False))
    torch.testing.assert_close(white, plain, rtol=1e-4, atol=1e-4)


def test_full_rank_gives_the_weight_back(layer):
    thing = layer()
    torch.testing.assert_close(thing.apply(Nearest(bits=2), Eora(rank=24)).dense(), thing.weight, rtol=1e-3, atol=1e-3)


def test_the_form_is_a_sum_and_repairs_add_up(layer):
    thing = layer()
    form = thing.apply(Gptq(bits=3), Eora(rank=4), Eora(rank=2))
    assert isinstance(form, Sum) and [part.kind for part in form.parts] == ["integer", "low_rank", "low_rank"]
    assert isinstance(form.parts[1], LowRank) and form.parts[1].rank == 4
    assert thing.error(form) < thing.error(thing.apply(Gptq(bits=3), Eora(rank=4)))


@pytest.mark.parametrize(("bits", "most"), [(8, 1.02), (6, 1.1), (4, 1.6)])
def test_factors_of_few_bits_take_their_share_and_repair_nearly_as_much(layer, bits, most):
    thing = layer(64, 96)
    none, plain, coded = (thing.apply(Nearest(bits=2), *after) for after in ((), (Eora(rank=8),), (Eora(rank=8, factors=bits),)))
    added = lambda form: form.nbytes - none.nbytes
    assert added(coded) <= added(plain) * bits / (8 * thing.weight.element_size()) + thing.weight.element_size() * 9
    lost, left, gone = (thing.error(form) ** 2 for form in (none, coded, plain))
    assert left - gone < (most - 1) * (lost - gone)
    assert [part.kind for part in coded.parts] == ["integer", "product"]
    again = restore(coded.describe(), coded.tensors())
    assert torch.equal(again.dense(), coded.dense())


def test_a_weight_that_lost_nothing_is_left_alone(layer):
    thing = layer()
    for factors in (16, 8):
        form = thing.apply(Magnitude(keep=1.0), Eora(rank=2, factors=factors))
        torch.testing.assert_close(form.dense(), thing.weight, rtol=0, atol=0)


def test_there_must_be_something_to_repair(layer):
    thing = layer()
    with pytest.raises(SettingError, match=r"repair/eora: must follow a step that changed the weight, layer\.weight is unchanged"):
        thing.apply(Eora())
    with pytest.raises(SettingError, match=r"must follow a step that changed the weight"):
        thing.apply(Eora(), current=Dense(thing.weight))


def test_without_data_plain_svd_stands_in():
    assert Eora(rank=3).without_data() == Eora(rank=3, whiten=False)


def test_rank_must_be_positive():
    with pytest.raises(SettingError, match=r"eora\.rank: must lie between 1 and"):
        Eora(rank=0)
