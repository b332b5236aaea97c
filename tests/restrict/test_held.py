"""What is held stays: masks, codes and bytes to the bit, whatever training does to the numbers; PERP's product merges under a mask."""

import pytest
import torch

from modicum.core.errors import SettingError
from modicum.core.parametrization import Start, Step
from modicum.core.unit import Stats
from modicum.forms import Cut, Dense, Float8, Ggml, Integer, LowRank, Masked, Sum
from modicum.quantize import Kmeans
from modicum.restrict import Held


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def integer(dtype=torch.bfloat16):
    codes = torch.randint(0, 4, (6, 16), generator=chance(), dtype=torch.uint8)
    scale, zero = torch.rand(6, 2, generator=chance(1)).to(dtype), torch.randint(0, 4, (6, 2), generator=chance(2), dtype=torch.uint8)
    return Integer(codes, scale, zero, 2, 8)


def masked(dtype=torch.bfloat16):
    weight = torch.randn(6, 16, generator=chance(3)).to(dtype)
    return Masked.of(weight, torch.rand(6, 16, generator=chance(4)) < 0.5)


FORMS = {
    "masked": masked(),
    "integer": integer(),
    "float8": Float8(
        torch.randn(6, 16, generator=chance()).to(torch.float8_e4m3fn), torch.rand(6, 1, generator=chance()).to(torch.bfloat16)
    ),
    "dense": Dense(torch.randn(6, 16, generator=chance()).to(torch.bfloat16)),
    "sum": Sum((integer(), LowRank(torch.zeros(6, 2).bfloat16(), torch.randn(2, 16, generator=chance()).bfloat16()))),
    "cut": Cut(masked(), torch.tensor([True] * 6 + [False] * 2), None),
    "wide": masked(torch.float32),
    "codebook": Kmeans(bits=2).code(torch.randn(6, 16, generator=chance(7)), Stats(), torch.bfloat16),
}


def begun(stored, **settings):
    method = Held(**settings)
    assert method.suits(stored)
    return method, method.begin(Start(unit="w", shape=stored.shape, weight=None, chance=chance(5), seed=0, stored=stored))


@pytest.mark.parametrize("settings", [{}, {"rank": 2}], ids=["each", "product"])
@pytest.mark.parametrize("stored", FORMS.values(), ids=FORMS)
def test_numbers_move_and_all_else_stays(stored, settings):
    method, state = begun(stored, **settings)
    assert torch.equal(method.weight(None, state, Step()), stored.dense().float())
    assert all(torch.equal(one.float(), two.float()) for one, two in zip(method.form(state).tensors().values(), stored.tensors().values()))
    moved = state.having({name: 0.3 * torch.randn(tensor.shape, generator=chance(6)) for name, tensor in state.trained.items()})
    form, movable = method.form(moved), stored.movable()
    assert form.describe() == stored.describe() and form.nbytes == stored.nbytes and form.outline == stored.outline
    assert torch.equal(form.dense().float(), method.weight(None, moved, Step(1, 1)))
    for name, tensor in form.tensors().items():
        changed = not torch.equal(tensor.float(), stored.tensors()[name].float())
        assert changed == (name in movable), name


def test_zeros_stay_zeros_and_so_does_a_mask_that_holds_some():
    stored = masked()
    stored.kept[:3] = 0
    method, state = begun(stored, rank=3)
    moved = state.having({name: torch.randn(tensor.shape, generator=chance(7)) for name, tensor in state.trained.items()})
    assert torch.equal(method.form(moved).mask, stored.mask) and not method.form(moved).dense()[~stored.mask].any()


def test_the_gradient_is_that_of_numbers_before_rounding():
    stored = FORMS["wide"]
    method, state = begun(stored)
    steps = {name: tensor.clone().requires_grad_() for name, tensor in state.trained.items()}
    method.weight(None, state.having(steps), Step()).square().sum().backward()
    torch.testing.assert_close(steps["values"].grad, 2 * stored.kept * state["values size"])


def test_what_holds_no_numbers_is_refused_in_words():
    stored = Ggml(torch.zeros(2, 18, dtype=torch.uint8), "q4_0", (2, 32), torch.float32)
    assert not Held().suits(stored)
    with pytest.raises(SettingError, match="must hold numbers that may move"):
        Held().begin(Start(unit="w", shape=(2, 32), weight=None, chance=chance(), seed=0, stored=stored))
