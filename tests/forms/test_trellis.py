import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.core.errors import ModelError
from modicum.forms import Coded, restore
from modicum.forms.trellis import SEGMENT, STATES, Following, after, shifted


def form(rows, columns, bits=9.0, seed=0):
    chance = torch.Generator().manual_seed(seed)
    codes = (torch.randn(rows, columns, generator=chance) * 2).round().clamp(-9, 9).to(torch.int8)
    tables, steps = torch.full((rows,), 18, dtype=torch.int16), torch.randint(0, 2, (columns,), generator=chance).to(torch.int16) * 2
    return Coded(codes, 0.5, tables, steps, bits, torch.bfloat16, trellis=STATES)


def walked(codes):
    """The grids of one column, code by code, from the words of the docstring."""
    state, found = 0, []
    for row, code in enumerate(codes):
        state = 0 if row % SEGMENT == 0 else state
        found.append(state & 1)
        state = state >> 1 ^ (5 if state & 1 else 0) ^ (2 if code % 2 else 0)
    return found


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(64, 300), st.integers(0, 99))
def test_codes_on_paths_come_back(rows, columns, seed):
    made = form(rows, columns, seed=seed)
    found = restore(made.describe(), made.tensors())
    assert torch.equal(found.codes, made.codes) and torch.equal(found.dense(), made.dense())


def test_a_path_begins_anew_after_a_segment():
    made = form(2 * SEGMENT + 70, 96)
    found = restore(made.describe(), made.tensors())
    assert torch.equal(found.codes, made.codes)
    assert shifted(made.codes.numpy())[:, 7].tolist() == walked(made.codes[:, 7].tolist())


def test_the_grids_are_told_as_codes_come():
    codes = np.random.default_rng(0).integers(-9, 10, (2 * SEGMENT + 5, 12)).astype(np.int8)
    path, flat, expected = Following(codes.size, 12, 7), codes.reshape(-1), shifted(codes).reshape(-1)
    slots = np.zeros(len(flat), dtype=np.intp)
    for low in range(0, len(flat), 9):
        assert np.array_equal(slots[low : low + 9], 7 * expected[low : low + 9])
        path.met(low, (flat[low : low + 9] & 1).astype(np.uint8), slots)


def test_values_are_whole_and_half_steps():
    made = form(40, 64)
    grids, values = shifted(made.codes.numpy()), made.halves.numpy()
    assert (values[grids == 0] % 2 == 0).all() and (values[(grids == 1) & (values != 0)] % 2 == 1).all() and grids.any()
    assert torch.equal(made.dense().float(), torch.from_numpy(values) * 0.25 * torch.where(made.columns == 0, 1.0, 1.5))


def test_three_codes_lead_anywhere_in_one_way():
    states = np.arange(STATES, dtype=np.uint8)
    for odds in np.ndindex(2, 2, 2):
        states_after = states
        for odd in odds:
            states_after = after(states_after, np.full(STATES, odd, dtype=np.uint8))
        assert sorted(states_after.tolist()) == list(range(STATES))


def test_what_does_not_fit_is_told():
    made = form(30, 64)
    told, parts = made.describe(), made.tensors()
    with pytest.raises(ModelError, match="a trellis has 8 states, not 4"):
        restore(told | {"trellis": 4}, parts)
    with pytest.raises(ModelError, match="fit together"):
        restore(told | {"shape": [64, 30]}, parts)
    with pytest.raises(ModelError, match="cannot hold entries at zero"):
        made.zeroed(torch.zeros(30, 64, dtype=torch.bool))
