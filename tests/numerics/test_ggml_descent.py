import pytest
import torch

from modicum.core.blocks import Blocks
from modicum.core.ggml import TYPES
from modicum.core.unit import Stats
from modicum.forms.ggml import decode
from modicum.numerics.ggml import encode
from modicum.numerics.ggml_descent import descend
from modicum.numerics.ggml_held import Held
from modicum.quantize import Ggml


def problem(columns=512):
    inputs = torch.randn(600, 96) @ torch.randn(96, columns) / 10 + 0.2 * torch.randn(600, columns)
    return torch.randn(16, columns), inputs.T @ inputs


def lost(weight, blocks, name, square):
    error = (weight - decode(blocks, name, weight.shape[1])).double()
    return ((error @ square.double()) * error).sum(1)


@pytest.mark.parametrize("name", TYPES)
def test_what_is_held_is_what_is_stored_and_no_sweep_loses_more(name):
    weight, square = problem()
    start = encode(weight, name)
    held = Held(start, name)
    assert torch.equal(held.blocks(), start) and torch.equal(held.values().T, decode(start, name, 512))
    before = lost(weight, start, name, square)
    for _ in range(2):
        told = descend(weight, held, square, 0.0, 1)
        now = lost(weight, held.blocks(), name, square)
        torch.testing.assert_close(told, now, rtol=2e-2, atol=0)  # what is told is what is stored, to the digits of sums in float32
        assert (now < before).all()
        before = now


def test_blocks_of_a_covariance_are_moved_each_by_itself():
    weight, square = problem()
    halves = Blocks((square[:256, :256], square[256:, 256:]))
    made = lambda weight, moment: Ggml(type="q4_k", sweeps=2).code(weight, moment, torch.float32).blocks
    whole = made(weight, Stats(count=600, blocks=halves))
    parts = [made(weight[:, own], Stats(count=600, covariance=square[own, own])) for own in (slice(256), slice(256, 512))]
    assert float((whole == torch.cat(parts, 1)).float().mean()) > 0.9  # the damping is of the mean of both
