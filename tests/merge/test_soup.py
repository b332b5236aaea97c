"""The uniform soup is the mean; the greedy one takes evaluation."""

import pytest

from modicum.core.errors import SettingError


def test_the_uniform_soup_is_the_mean(tensors, merged):
    base, others = tensors(3)
    found, mean = merged("soup", base, others), merged("average", base, others)
    assert all(bool((found[name] == mean[name]).all()) for name in base)


def test_the_greedy_soup_asks_for_evaluation(tensors, merged):
    base, others = tensors(2)
    with pytest.raises(SettingError, match="greedy takes validation data"):
        merged("soup recipe=greedy", base, others)
