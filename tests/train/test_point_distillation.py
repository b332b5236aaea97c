"""Point distillation: nothing where both see alike, more where important points differ, and a wrong shape is told."""

import pytest
import torch

from modicum.core.errors import DataError
from modicum.train.point_distillation import importance, local_distillation


def test_it_is_zero_for_the_same_and_counts_what_matters_more():
    draw = torch.Generator().manual_seed(0)
    features, places = torch.rand(2, 40, 8, generator=draw), torch.randn(2, 40, 3, generator=draw)
    important = importance(features)
    assert float(local_distillation(features, features, places, important)) == 0
    order = important.argsort(1, descending=True)
    losses = []
    for rank in (0, 39):
        other = features.clone()
        other[torch.arange(2), order[:, rank]] += torch.randn(8, generator=draw)
        losses.append(float(local_distillation(other, features, places, important, points=10)))
    assert losses[0] > losses[1]


def test_a_wrong_shape_is_told():
    with pytest.raises(DataError, match="must be alike and have 32 points or more"):
        local_distillation(torch.rand(2, 10, 4), torch.rand(2, 10, 4), torch.rand(2, 10, 3), torch.rand(2, 10))
