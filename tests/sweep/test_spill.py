"""Activations in files: a disk that is full is told before anything is mapped."""

import errno

import pytest
import torch

from modicum.sweep import spill
from modicum.sweep.spill import SpillPool


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path, monkeypatch):
    asked = []

    def full(descriptor, offset, length):
        asked.append(length)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill, "_reserve", full)
    value = torch.ones(1 << 16)
    with pytest.raises(OSError, match="No space left"):
        SpillPool(0, tmp_path).admit(value)
    assert asked == [value.nbytes] and torch.equal(value, torch.ones(1 << 16)) and not list(tmp_path.iterdir())


def test_room_is_taken_when_a_tensor_moves(tmp_path):
    pool, value = SpillPool(0, tmp_path), torch.arange(1 << 16)
    pool.admit(value)
    assert pool.spilled == value.nbytes and torch.equal(value, torch.arange(1 << 16))
