"""A full disk or weights that cannot be read end a run with one sentence; with the fault gone the same command ends at the same files."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

PLACES = 8


def sentence(home, **fault):
    """The one sentence with which the command stops."""
    assert home.run(**fault) == 2, home.said
    line = home.said.splitlines()[-1]  # after the lines of progress
    assert line.startswith("modicum: ") and line.endswith(".")
    assert not home.out.exists()
    return line


def goes_on(home, uninterrupted):
    assert home.run() == 0, home.said
    assert home.files() == uninterrupted.files()


def somewhere(place, of, count):
    """A number from 1 to ``count`` in the ``place``-th of ``of`` equal parts."""
    return 1 + int((place + random.Random(place).random()) * count / of)


@pytest.mark.parametrize("command", ["budget", "adapt", "apply"])
def test_a_killed_command_continues_to_the_same_files(killed, command):
    killed(command, 1, 2)


# A full disk


def fills_and_goes_on(home, whole, command, place, of):
    words, uninterrupted, moments, _ = whole(command)
    # Once it is in its place there is nothing left to write.
    last = next(number for number, line in enumerate(moments, 1) if line == "os.rename out.partial/final")
    one = home(*words)
    assert "space" in sentence(one, full=somewhere(place, of, last - 1))
    goes_on(one, uninterrupted)


def test_a_full_disk_stops_a_fit_until_there_is_space(home, whole):
    fills_and_goes_on(home, whole, "budget", 1, 3)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(PLACES))
@pytest.mark.parametrize("command", ["budget", "measure", "adapt"])
def test_a_full_disk_stops_every_command_anywhere(home, whole, command, place):
    fills_and_goes_on(home, whole, command, place, PLACES)


@contextlib.contextmanager
def mounted(path, size):
    """A file system of its own, which can be made larger. Skips where that is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", path]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here: that takes Linux and root")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", path], check=True)
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.slow
def test_a_small_tmpfs_is_enough_once_it_is_larger(home, whole):
    words, uninterrupted, *_ = whole("budget")
    one = home(*words)
    with mounted(one.path, 8) as resize:
        for size in (64, 256, 512, 1024):
            assert "space" in sentence(one).lower()
            resize(size)
        resize(65536)
        goes_on(one, uninterrupted)


# Weights that cannot be read


def breaks_and_goes_on(home, whole, model, aside, fault, place, of):
    words, uninterrupted, _, reads = whole("budget")
    weights, one = model / "model.safetensors", home(*words)
    shutil.copy2(weights, aside)
    try:
        assert "model.safetensors" in sentence(one, **{fault: somewhere(place, of, reads)})
    finally:
        shutil.copy2(aside, weights)  # with its time, by which a run knows its model
    goes_on(one, uninterrupted)


def test_a_weight_that_cannot_be_read_stops_a_fit_by_name(home, whole, model, tmp_path):
    breaks_and_goes_on(home, whole, model, tmp_path / "aside", "unreadable", 1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(PLACES))
@pytest.mark.parametrize("fault", ["unreadable", "truncated"])
def test_any_read_may_fail(home, whole, model, tmp_path, fault, place):
    breaks_and_goes_on(home, whole, model, tmp_path / "aside", fault, place, PLACES)


# Two at once


def test_the_second_of_two_runs_stops_until_the_first_is_killed(home, whole):
    words, uninterrupted, moments, _ = whole("budget")
    one = home(*words)
    first = one.run(stop=len(moments) // 2)["stopped"]
    assert sentence(one).endswith("out: is being written by another run. Wait for it, or choose another --out.")
    os.kill(first, signal.SIGKILL)
    while Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    goes_on(one, uninterrupted)
