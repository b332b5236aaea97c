"""One mechanism over forms: each loses less in the same bytes, as least squares says where there is an answer in closed form."""

import pytest
import torch

from modicum.core.errors import SettingError
from modicum.core.option import Option
from modicum.factor import Svd
from modicum.forms import Dense, Masked
from modicum.prune import Magnitude, Sparsegpt
from modicum.quantize import Activations, Coded, Gptq, Hqq, Kmeans, Nearest
from modicum.repair import Eora, Refine


@pytest.mark.parametrize(
    ("before", "most"),
    [((Nearest(bits=3),), 0.7), ((Hqq(bits=2, group=32),), 0.8), ((Nearest(bits=3, group=16, scales=6),), 0.7),
     ((Nearest(bits=4), Activations(format="int8")), 0.7), ((Magnitude(keep=0.5),), 0.6),
     ((Sparsegpt(keep=0.5),), 0.999), ((Kmeans(bits=3),), 0.9), ((Svd(rank=8),), 0.999), ((Gptq(bits=2, sweeps=0), Eora(rank=4)), 0.9)],
    ids=lambda value: " | ".join(map(str, value)) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_less_is_lost_in_the_same_bytes(layer, before, most):
    thing = layer(32, 96)
    plain, better = thing.apply(*before), thing.apply(*before, Refine(towards=0.0))
    assert better.nbytes == plain.nbytes and better.kind == plain.kind
    assert thing.error(better) < most * thing.error(plain)


def test_values_under_a_mask_are_those_of_least_squares(layer):
    thing = layer(8, 32)
    mask = torch.rand(8, 32, generator=torch.Generator().manual_seed(1)) < 0.5
    stats = thing.stats()
    ridge = 0.01 * stats.covariance.diagonal().mean() * torch.eye(32)
    damped = (stats.covariance + ridge).double()
    plain = Masked.of(thing.weight, mask)
    found, best = Refine(rounds=30).mended(plain, thing.weight, stats).dense(), torch.zeros(8, 32, dtype=torch.float64)
    for row, kept in enumerate(mask):
        best[row, kept] = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ thing.weight[row].double())
    lost = lambda value: float((((error := thing.weight - value).double() @ damped) * error).sum())
    assert lost(best) <= lost(found) < 1.001 * lost(best) < 0.5 * lost(plain.dense())
    assert not found[~mask].any()


def test_it_makes_up_for_inputs_that_drifted(layer):
    thing = layer(32, 96)
    stats, draw = thing.stats(), torch.Generator().manual_seed(2)
    before = thing.inputs @ (torch.eye(96) + 0.05 * torch.randn(96, 96, generator=draw))
    stats.drift = (before - thing.inputs).T @ thing.inputs
    form, wanted = thing.apply(Magnitude(keep=0.7)), before @ thing.weight.T
    lost = lambda share: float((wanted - thing.inputs @ Refine(towards=share).mended(form, thing.weight, stats).dense().T).norm())
    assert lost(1.0) < lost(0.5) < lost(0.0)


def test_no_rounds_and_no_inputs_change_nothing(layer):
    thing = layer()
    plain = thing.apply(Magnitude(keep=0.5))
    assert torch.equal(thing.apply(Magnitude(keep=0.5), Refine(rounds=0)).dense(), plain.dense())
    assert Refine(rounds=9).without_data() == Refine(rounds=0) and not Refine(rounds=0).wanted()


def test_there_must_be_something_to_move(layer):
    thing = layer()
    with pytest.raises(SettingError, match=r"repair/refine: must follow a step that changed the weight"):
        thing.apply(Refine(), current=Dense(thing.weight))
    with pytest.raises(SettingError, match=r"must follow a step whose numbers can move, came after one that left it coded"):
        thing.apply(Coded(rate=2.0), Refine())
    with pytest.raises(SettingError, match="refine must follow a step that changes the weight"):
        Option.parse("refine")


@pytest.mark.parametrize(
    "steps", [(Sparsegpt(keep=0.5),), (Nearest(bits=3), Refine()), (Svd(rank=8), Refine())], ids=lambda steps: steps[0].key()
)
def test_bits_do_not_depend_on_threads(layer, steps):
    thing, made, before = layer(129, 777), [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(thing.apply(*steps).dense())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)
