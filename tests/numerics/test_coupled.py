import pytest
import torch

from modicum.numerics.coupled import coupled
from modicum.numerics.grid import Grid

GRID = Grid(2, 16)


def problem(rows=22, columns=48):
    mix = torch.randn(rows, rows // 2)
    return torch.randn(rows, columns), mix @ mix.T + 0.3 * torch.eye(rows)


def rounded(weights):
    return [GRID.encode(weight, *GRID.fit(weight, torch.float32)) for weight in weights]


def harm(weight, form, felt):
    error = (weight - form.dense()).double()
    return float(((felt.double() @ error) * error).sum())


@pytest.mark.parametrize("turns", [2, 4, 22])
def test_errors_of_rows_that_are_felt_together_make_up_for_each_other(turns):
    weight, felt = problem()
    (plain,), (form,) = rounded([weight]), coupled([weight], [felt], rounded, turns)
    assert harm(weight, form, felt) < 0.9 * harm(weight, plain, felt)
    assert form.codes.shape == weight.shape and (form.bits, form.group) == (2, 16)


def test_a_naive_twin():
    weight, felt = problem(rows=6)
    damped = (felt + 0.1 * felt.diagonal().mean() * torch.eye(6)).double()
    expected, error = torch.zeros(6, 48), torch.zeros(6, 48, dtype=torch.float64)
    for turn in range(3):
        done, now = [row for row in range(6) if row % 3 < turn], [row for row in range(6) if row % 3 == turn]
        # The rows to come are free: what they make up for is taken out first.
        free = [row for row in range(6) if row % 3 > turn]
        pick = lambda rows, others: damped[rows][:, others]
        kept = [*done, *now]
        left = pick(kept, kept) - (pick(kept, free) @ torch.linalg.inv(pick(free, free)) @ pick(free, kept) if free else 0)
        within = torch.linalg.cholesky(left.flip(0, 1)).flip(0, 1)  # upper: rows before act on those after
        mixed = within / within.diagonal()
        target = weight[now] + (mixed[: len(done), len(done) :].T @ error[done]).float()
        expected[now] = rounded([target])[0].dense()
        error[now] = (weight[now] - expected[now]).double()
    (form,) = coupled([weight], [felt], rounded, 3)
    # A code more or less would be a whole step; scales may differ in their last bits, which follow the processor's order of sums.
    torch.testing.assert_close(form.dense(), expected, rtol=1e-5, atol=1e-6)


def test_rows_that_are_felt_apart_are_made_as_ever():
    weight, _ = problem()
    (form,) = coupled([weight], [torch.diag(torch.rand(22) + 0.1)], rounded, 4)
    assert torch.equal(form.dense(), rounded([weight])[0].dense())


def test_weights_are_made_together_turn_by_turn_and_those_that_are_not_felt_at_once():
    (first, felt), second, calls = problem(), torch.randn(3, 48), []

    def make(weights):
        calls.append([len(weight) for weight in weights])
        return rounded(weights)

    together = coupled([first, second], [felt, None], make, 4)
    assert calls == [[6, 3], [6], [5], [5]]
    alone = [coupled([first], [felt], rounded, 4)[0], rounded([second])[0]]
    for one, other in zip(together, alone):
        assert torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale) and torch.equal(one.zero, other.zero)
