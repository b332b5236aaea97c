"""Pitch trackers made of convolutions hear the same pitches at a quarter of their bytes."""

import models
import pytest
import torch

import modicum


@pytest.fixture(scope="module")
def heard(package):
    package("resampy")
    models.crepe("tiny")
    return models.tones()


@pytest.fixture(scope="module")
def small(heard, tmp_path_factory):
    out = tmp_path_factory.mktemp("pitch") / "out"
    return modicum.fit(models.crepe("tiny"), bpw=8, data=heard[0].split(32), out=out)


def test_tiny_hears_what_it_heard(heard, small):
    model, other = models.crepe("tiny"), models.tones(seed=1)
    loaded = modicum.load(small.out, into=type(model)("tiny"))
    for frames, pitches in (heard, other):
        assert models.pitches_right(model, frames, pitches) >= 0.979
        assert models.pitches_right(loaded, frames, pitches) >= 0.979
        with torch.no_grad():
            same = (model(frames).argmax(1) - loaded(frames).argmax(1)).abs() <= 1
        assert float(same.float().mean()) >= 0.979


def test_tiny_fits_and_all_its_convolutions_are_treated(small):
    receipt = small.receipt
    assert receipt["bytes"]["actual"] <= receipt["bytes"]["allowed"]
    assert receipt["coverage"]["share"] > 0.99


def test_full_gives_a_result_or_a_refusal_before_measuring(heard, tmp_path):
    """Its widest rows have 65,536 columns: their covariance would take 17 GB."""
    model, frames = models.crepe("full"), heard[0][::6]
    try:
        result = modicum.fit(model, bpw=8, data=frames.split(16), out=tmp_path / "out", search_time=0)
    except modicum.ModicumError:
        assert not list(tmp_path.glob("*/measure/*")), "it was refused after measuring had begun"
        return
    assert result.receipt["bytes"]["actual"] <= result.receipt["bytes"]["allowed"]
    few = slice(0, 96)
    assert models.pitches_right(result.model, heard[0][few], heard[1][few]) >= 0.979
