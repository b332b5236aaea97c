"""SPDF: what was sparse is freed, and comes near what was dense all along."""

from modicum.core.parametrization import Step
from modicum.restrict import Spdf


def test_the_zeros_are_freed_at_their_step_and_moments_stay(problem):
    seen = {}

    def each(number, t, optimizer):
        seen[number] = t.count, [float(state["exp_avg"].abs().sum()) for state in optimizer.state.values()]

    freed, _ = problem.learn("spdf keep=0.25 until=0.5", each=each)
    whole, sparse = 64 * 16 + 16 * 8, round(0.25 * (64 * 16 + 16 * 8))
    assert seen[74][0] == sparse and seen[75][0] == whole and all(total > 0 for total in seen[75][1])
    stayed, _ = problem.learn("random keep=0.25 layers=uniform")
    dense, _ = problem.learn("dense")
    assert freed < 0.2 * stayed and freed < dense + 0.1


def test_operations_are_those_of_the_mask_while_it_stands():
    assert [Spdf(keep=0.25, until=0.5).density(Step(number, 10)) for number in (0, 4, 5, 9)] == [0.25, 0.25, 1.0, 1.0]
