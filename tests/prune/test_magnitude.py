import pytest
import torch

from modicum.core.errors import SettingError
from modicum.prune import Magnitude


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_the_smallest_of_the_tensor_go(layer, keep):
    thing = layer(7, 33)
    form = thing.apply(Magnitude(keep=keep))
    count = round(keep * 7 * 33)
    assert form.values == count == int(form.mask.sum())
    kept, gone = thing.weight[form.mask].abs(), thing.weight[~form.mask].abs()
    assert not count or not len(gone) or kept.min() >= gone.max()
    assert torch.equal(form.dense(), thing.weight * form.mask)


def test_everything_kept_is_the_weight_itself(layer):
    thing = layer()
    assert torch.equal(thing.apply(Magnitude(keep=1.0)).dense(), thing.weight)


@pytest.mark.parametrize("scope, columns", [("tensor", 40), ("tensor", 4), ("row", 130), ("row", 8)])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.97, 1.0])
def test_masks_are_those_of_a_stable_sort(scope, columns, keep):
    """Few levels, so that most scores have their equals."""
    scores = torch.randint(0, 9, (30, columns), generator=torch.Generator().manual_seed(columns)).float()
    rows = scores.flatten()[None] if scope == "tensor" else scores
    order = rows.argsort(dim=1, descending=True, stable=True)
    expected = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order[:, : round(keep * rows.shape[1])], True)
    assert torch.equal(Magnitude(keep=keep).mask(scores, scope), expected.view_as(scores))


def test_ties_go_by_position(layer):
    thing = layer(2, 4)
    thing.weight = torch.ones(2, 4)
    assert thing.apply(Magnitude(keep=0.5)).mask.tolist() == [[True] * 4, [False] * 4]


@pytest.mark.parametrize("pattern, columns", [("2:4", 32), ("1:4", 32), ("4:8", 20), ("2:4", 33), ("3:5", 7), ("4:4", 9)])
def test_patterns_keep_n_of_every_m(layer, pattern, columns):
    n, m = map(int, pattern.split(":"))
    thing = layer(5, columns)
    mask = thing.apply(Magnitude(keep=0.9, pattern=pattern)).mask
    for low in range(0, columns, m):
        size = thing.weight[:, low : low + m].abs()
        expected = min(n, size.shape[1])
        assert (mask[:, low : low + m].sum(1) == expected).all()
        for row in range(5):
            assert set(size[row].topk(expected).indices.tolist()) == set(mask[row, low : low + m].nonzero()[:, 0].tolist())


@pytest.mark.parametrize("pattern", ["4:2", "0:4", "2:65", "2", "a:b", "2:4:6", "-1:4", ""])
def test_a_malformed_pattern_is_told(pattern):
    with pytest.raises(SettingError) as error:
        Magnitude(pattern=pattern)
    assert str(error.value) == f"prune/magnitude.pattern: must be n:m with 0 < n <= m <= 64, got {pattern!r}."


@pytest.mark.parametrize("keep", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_bounds_is_told(keep):
    with pytest.raises(SettingError, match=r"magnitude\.keep: must lie between 0\.0 and 1\.0"):
        Magnitude(keep=keep)


def test_it_cannot_come_after_another_pruner(layer):
    with pytest.raises(SettingError, match=r"prune/magnitude: must come before .* left it masked\. Put prune/magnitude first"):
        layer().apply(Magnitude(), Magnitude())
