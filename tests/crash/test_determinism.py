"""The same bits with one thread and with two, and with any seed of Python's hashes."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Waiting threads sleep: on a busy machine two of them would otherwise take turns in keeping each other waiting.
SLEEPING = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


def made(threads, seed, *words):
    """What a process makes with that many threads and that seed of hashes."""
    environment = os.environ | SLEEPING | {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, Path(__file__).with_name("bits.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_threads_and_hashes_change_neither_forms_nor_files():
    assert made(2, 1) == made(1, 0)


@pytest.fixture(scope="session")
def files(wide_model, tmp_path_factory):
    """Hashes of what is written, and what receipts and findings tell (names with a colon), by threads and seed."""
    return functools.cache(lambda threads, seed: made(threads, seed, wide_model, tmp_path_factory.mktemp("bits")))


def differing(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


@pytest.mark.slow
@pytest.mark.parametrize("threads, seed", [(1, 1), (1, 2), (2, 0)])
def test_neither_changes_what_runs(files, threads, seed):
    assert not [name for name in differing(files(threads, seed), files(1, 0)) if ":" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("threads, seed", [(1, 1), (1, 2), (2, 0)])
def test_neither_changes_what_is_told(files, threads, seed):
    assert not differing(files(threads, seed), files(1, 0))
