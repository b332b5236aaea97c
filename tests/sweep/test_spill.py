"""Activations in files: a disk that is full is told before anything is mapped."""

import resource

import pytest
import torch

from modicum.sweep import spill
from modicum.sweep.spill import SpillPool


def test_no_room_is_an_error_and_not_the_end_of_the_process(tmp_path):
    value, limits = torch.ones(1 << 16), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (value.nbytes // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            SpillPool(0, tmp_path).admit(value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(value, torch.ones(1 << 16)) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64, torch.bool], ids=str)
def test_a_tensor_moves_once_whatever_it_is_called(tmp_path, dtype):
    pool, value = SpillPool(0, tmp_path), torch.arange(1 << 16).to(dtype)
    before = value.clone()
    pool.admit({"here": [value]})
    pool.admit((value, value.view(256, 256)))
    assert pool.spilled == value.nbytes and torch.equal(value, before) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("tight, grown", [(True, [10, 200]), (False, [200])])
def test_memory_is_given_back_where_it_has_grown_by_a_good_part_of_what_is_free(monkeypatch, tight, grown):
    """Pages that were given back are cleared before they serve again; in millions of bytes, of which 3000 are free."""
    held, given = [0], []
    monkeypatch.setattr(spill, "own_memory", lambda: held[0] * 10**6)
    monkeypatch.setattr(spill, "free_memory", lambda: 3000 * 10**6)
    monkeypatch.setattr(spill, "trim", lambda circles: given.append(held[0]))
    pool = SpillPool(10**9, tight=tight)
    for held[0] in (1, 10, 11, 200):
        pool.trim()
    assert given == grown


def test_what_was_shown_first_goes_first_but_for_what_others_share(tmp_path):
    first, second, third, fourth = (torch.full((1 << 16,), float(value)) for value in range(4))
    part, pool = second[: 1 << 15], SpillPool(2 * first.nbytes, tmp_path)
    for value in (first, second, third, fourth):
        pool.admit(value)
    moved = [value.untyped_storage().filename is not None for value in (first, second, third, fourth)]
    assert moved == [True, False, True, False] and pool.held == 2 * first.nbytes
    part.add_(5)
    assert second[0] == 6 and [float(value.mean()) for value in (first, third, fourth)] == [0, 2, 3]
    del fourth, value
    assert pool.held == second.nbytes
