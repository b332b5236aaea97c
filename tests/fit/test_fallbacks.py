"""Nothing falls back silently: a solve that needed more damping ends the run, unless the caller said that it may."""

import pytest
import torch
from torch import nn

import modicum
from modicum.core.errors import ModelError

METHOD = "gptq bits=3 group=0 damping=1e-9"


@pytest.fixture
def starved():
    """A layer of 64 columns, and three rows to know them by."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval(), [torch.randn(1, 64) for _ in range(3)]


def test_more_damping_than_asked_for_ends_the_run(starved, tmp_path):
    model, data = starved
    with pytest.raises(ModelError, match="solves needed more damping than was asked for, the first: .*Use more calibration tokens, or"):
        modicum.fit(model, method=METHOD, data=data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_it_may_the_receipt_names_each(starved):
    model, data = starved
    told = modicum.fit(model, method=METHOD, data=data, allow_fallback=True).receipt
    assert sum("damping raised" in event for event in told["events"]) == len(told["sites"])
