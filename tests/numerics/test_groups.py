"""Columns that go in groups: every step against a solve from scratch, and what must hold whatever the numbers."""

import hypothesis.strategies as some
import pytest
import torch
from hypothesis import given

from modicum.core.errors import ModelError
from modicum.numerics.groups import Elimination, damped_covariance, refitted

DAMPING = 0.01


def problem(rows=6, columns=12, seed=0, tokens=60):
    """A weight and the covariance of correlated inputs, in double precision."""
    chance = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=chance, dtype=torch.float64) / columns**0.5
    inputs = torch.randn(tokens, columns, generator=chance, dtype=torch.float64) @ (torch.eye(columns) + 2 * mixed)
    return torch.randn(rows, columns, generator=chance, dtype=torch.float64), inputs.T @ inputs


def heads(columns, width):
    return [tuple(range(start, start + width)) for start in range(0, columns, width)]


def best_fit(weight, covariance, kept):
    """The twin: the damped normal equations of the columns ``kept``, solved from scratch, and the loss that is left."""
    damped = damped_covariance(covariance, DAMPING)
    full = torch.zeros_like(weight)
    full[:, kept] = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ weight.T).T
    error = weight - full
    return full[:, kept], float(((error @ damped) * error).sum())


def remaining(groups, left):
    return torch.tensor(sorted(column for group in left for column in groups[group]))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_removal_is_the_best_one_of_all_solved_from_scratch(width, seed):
    weight, covariance = problem(seed=seed)
    groups = heads(12, width)
    elimination, left, spent = Elimination(weight, covariance, groups, DAMPING), list(range(len(groups))), 0.0
    while len(left) > 1:
        losses = [best_fit(weight, covariance, remaining(groups, [g for g in left if g != gone]))[1] for gone in left]
        scores = elimination.scores()
        torch.testing.assert_close(scores + spent, torch.tensor(losses, dtype=torch.float64), rtol=1e-8, atol=1e-8)
        gone = left[int(scores.argmin())]
        elimination.remove([gone])
        left.remove(gone)
        fitted, spent = best_fit(weight, covariance, remaining(groups, left))
        assert elimination.left == left
        torch.testing.assert_close(elimination.weight, fitted, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(refitted(weight, covariance, remaining(groups, left), DAMPING), fitted, rtol=1e-8, atol=1e-8)


def test_one_at_a_time_follows_the_scores_and_a_lot_of_one_the_first_scores():
    weight, covariance = problem()
    groups = heads(12, 2)
    first = Elimination(weight, covariance, groups, DAMPING).scores().argsort().tolist()
    assert Elimination(weight, covariance, groups, DAMPING).order(1.0) == first
    stepwise, elimination = [], Elimination(weight, covariance, groups, DAMPING)
    while len(elimination.left) > 1:
        gone = elimination.left[int(elimination.scores().argmin())]
        elimination.remove([gone])
        stepwise.append(gone)
    assert Elimination(weight, covariance, groups, DAMPING).order(0.0) == [*stepwise, *elimination.left]


def test_groups_removed_together_are_gone_as_if_one_after_the_other():
    weight, covariance = problem()
    together, apart = (Elimination(weight, covariance, heads(12, 3), DAMPING) for _ in range(2))
    together.remove([0, 2])
    apart.remove([2])
    apart.remove([0])
    torch.testing.assert_close(together.weight, apart.weight)
    torch.testing.assert_close(together.scores(), apart.scores())
    together.remove([1])
    apart.remove([1])
    torch.testing.assert_close(together.weight, apart.weight)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize(("damping", "dtype"), [(0.01, torch.float32), (1e-9, torch.float64)], ids=["even", "nearly dependent"])
def test_float32_is_used_where_it_is_exact_enough_and_gives_the_same_order(width, damping, dtype):
    weight, covariance = problem(rows=20, columns=64, tokens=400)
    covariance[:, 5] = covariance[:, 6] * (1 + 1e-6)
    covariance[5] = covariance[6] * (1 + 1e-6)
    covariance[5, 5] = covariance[6, 6] * (1 + 1e-5)
    narrow = Elimination(weight.float(), covariance.float(), heads(64, width), damping)
    assert narrow.weight.dtype == dtype
    assert narrow.order(0.05) == Elimination(weight, covariance.float().double(), heads(64, width), damping).order(0.05)
    kept = torch.arange(0, 64, 2)
    ours = refitted(weight.float(), covariance.float(), kept, damping)
    torch.testing.assert_close(ours.double(), refitted(weight, covariance.float().double(), kept, damping), rtol=1e-3, atol=1e-3)


def test_groups_of_uneven_sizes_and_columns_in_none():
    weight, covariance = problem()
    groups = [(5,), (0, 7, 2), (11, 1)]  # 3, 4, 6, 8, 9 and 10 always stay
    elimination = Elimination(weight, covariance, groups, DAMPING)
    kept = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11])
    assert float(elimination.scores()[0]) == pytest.approx(best_fit(weight, covariance, kept)[1])
    elimination.remove([1])
    fitted, spent = best_fit(weight, covariance, torch.tensor([1, 3, 4, 5, 6, 8, 9, 10, 11]))
    torch.testing.assert_close(elimination.weight, fitted)
    both = best_fit(weight, covariance, torch.tensor([1, 3, 4, 6, 8, 9, 10, 11]))[1]
    assert float(elimination.scores()[0]) == pytest.approx(both - spent)


def test_what_is_copied_elsewhere_goes_first():
    weight, _ = problem(rows=6, columns=8)
    inputs = torch.randn(200, 8, dtype=torch.float64)
    inputs[:, 5] = 2 * inputs[:, 1]
    weight[:, 5] *= 20  # the largest weight of all, and yet the column 1 can do its work
    assert Elimination(weight, inputs.T @ inputs, heads(8, 1), 1e-6).order(0.0)[0] in (1, 5)


def test_dead_inputs_cost_least_and_change_nothing():
    weight, covariance = problem()
    for dead in (3, 8):
        covariance[dead] = covariance[:, dead] = 0
    weight[:, 3] *= 10
    order = Elimination(weight, covariance, heads(12, 1), 1e-6).order(0.0)
    assert set(order[:2]) == {3, 8}
    kept = torch.tensor([c for c in range(12) if c not in (3, 8)])
    torch.testing.assert_close(refitted(weight, covariance, kept, 1e-6), weight[:, kept])


def test_no_input_at_all_is_an_order_like_any_other():
    weight = torch.tensor([[3.0, 1.0, 2.0]])
    assert Elimination(weight, torch.zeros(3, 3), heads(3, 1), 0.0).order(0.0) == [1, 2, 0]


@given(seed=some.integers(0, 1000), width=some.sampled_from([1, 2, 4]), lot=some.sampled_from([0.0, 0.05, 0.3, 1.0]))
def test_an_order_holds_every_group_once_and_comes_again(seed, width, lot):
    weight, covariance = problem(rows=3, columns=8, seed=seed)
    groups = heads(8, width)
    order = Elimination(weight, covariance, groups, DAMPING).order(lot)
    assert sorted(order) == list(range(len(groups)))
    assert order == Elimination(weight, covariance, groups, DAMPING).order(lot)


@given(seed=some.integers(0, 1000))
def test_groups_renamed_go_in_the_same_order(seed):
    weight, covariance = problem(rows=3, columns=8, seed=seed)
    renamed = torch.randperm(4, generator=torch.Generator().manual_seed(seed)).tolist()
    groups = heads(8, 2)
    order = Elimination(weight, covariance, groups, DAMPING).order(0.0)
    assert [renamed[place] for place in Elimination(weight, covariance, [groups[g] for g in renamed], DAMPING).order(0.0)] == order


@given(seed=some.integers(0, 1000), keep=some.integers(1, 8))
def test_a_refit_never_loses_more_than_the_columns_as_they_are(seed, keep):
    weight, covariance = problem(rows=3, columns=8, seed=seed)
    kept = torch.randperm(8, generator=torch.Generator().manual_seed(seed))[:keep].sort().values
    damped = damped_covariance(covariance, DAMPING)

    def loss(part):
        error = weight.clone()
        error[:, kept] -= part
        return float(((error @ damped) * error).sum())

    assert loss(refitted(weight, covariance, kept, DAMPING)) <= loss(weight[:, kept]) * (1 + 1e-9)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_keeping_all_columns_gives_the_weight_back_to_the_bit(damping):
    weight, covariance = problem()
    covariance[4] = covariance[:, 4] = 0
    assert torch.equal(refitted(weight.float(), covariance.float(), torch.arange(12), damping), weight.float())


def test_clean_hands():
    weight, covariance = problem()
    before = weight.clone(), covariance.clone()
    Elimination(weight, covariance, heads(12, 3), DAMPING).order(0.0)
    refitted(weight, covariance, torch.arange(6), DAMPING)
    assert torch.equal(weight, before[0]) and torch.equal(covariance, before[1])


def test_what_cannot_be_solved_is_said():
    weight, covariance = problem(tokens=4)  # four tokens for twelve columns
    rounded = (covariance * 1e3).round() / 1e3 - 0.05 * torch.eye(12)
    with pytest.raises(ModelError, match=r"must be positive definite, is not with damping=0\. Raise damping"):
        Elimination(weight, rounded, heads(12, 1), 0.0)
    with pytest.raises(ModelError, match="must be positive definite"):
        refitted(weight, rounded, torch.arange(8), 0.0)
    with pytest.raises(ModelError, match="must be finite"):
        Elimination(weight, covariance * float("nan"), heads(12, 1), DAMPING)
