"""A law is found again from its own numbers, and its error is that of what it has not seen."""

import pytest

from modicum.core.errors import DataError
from modicum.core.parametrization import Step
from modicum.numerics.scaling import Law, average, fitted, left_out
from modicum.restrict import Gradual

SIZES = (1e4, 3e4, 1e5, 3e5, 1e6)


@pytest.mark.parametrize("law", [Law(2.0, 300.0, 0.5), Law(0.0, 20.0, 0.2)])
def test_a_law_is_found_again(law):
    losses = [law(size) for size in SIZES]
    found = fitted(SIZES, losses)
    assert found(2e6) == pytest.approx(law(2e6), rel=5e-3) and left_out(SIZES, losses) < 0.02
    losses[2] += 0.5
    assert left_out(SIZES, losses) > 0.1


def test_the_average_is_that_of_the_schedule():
    method, total = Gradual(keep=0.3, since=0.25, until=0.75, every=1), 4000
    mean = sum(method.density(Step(number, total)) for number in range(total)) / total
    assert average(1.0, 0.3, 0.25, 0.75) == pytest.approx(mean, abs=1e-3)


def test_too_little_is_told():
    with pytest.raises(DataError, match="trainings of three sizes at least"):
        fitted([1.0, 2.0], [1.0, 0.5])
