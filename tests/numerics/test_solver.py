import pytest
import torch

from modicum.core.errors import ModelError
from modicum.numerics.grid import Grid
from modicum.numerics.solver import factorize, solve

DAMPING = 0.01


def problem(rows, columns, seed=0):
    """A weight and the covariance of strongly correlated inputs."""
    chance = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * columns, columns, generator=chance) @ torch.randn(columns, columns, generator=chance)
    return torch.randn(rows, columns, generator=chance), inputs.T @ inputs


def damped(covariance, damping=DAMPING):
    covariance = covariance.double()
    return covariance + damping * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)


def textbook(weight, covariance, decide, span=0, prepare=None):
    """The column-by-column twin in float64, as the papers tell it: H⁻¹, its upper Cholesky factor U, and after each column the
    errors over U_kk times row k of U taken off all later columns.
    """
    work, chosen = weight.double().clone(), torch.empty_like(weight, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(covariance), upper=True)
    for k in range(work.shape[1]):
        if span and k % span == 0:
            prepare(k, min(k + span, work.shape[1]), work[:, k : k + span].T.clone(), factor.diagonal())
        chosen[:, k] = decide(k, work[:, k])
        error = (work[:, k] - chosen[:, k]) / factor[k, k]
        work[:, k + 1 :] -= error[:, None] * factor[k, k + 1 :]
    return chosen


def loss_of(weight, chosen, covariance):
    error = weight.double() - chosen.double()
    return float(((error @ covariance) * error).sum())


def rounder(grid, weight):
    """Decides columns on a grid fitted once; computes in the dtype it is asked in."""
    form = grid.encode(weight, *grid.fit(weight, torch.float32))
    scale, zero = form.spread(form.scale), form.spread(form.zero).float()
    scale, zero = scale.expand_as(weight), zero.expand_as(weight)
    level = lambda k, column: (column / scale[:, k] + zero[:, k]).round().clamp(0, grid.top)
    return lambda k, column: (level(k, column) - zero[:, k]) * scale[:, k]


SIZES = [1, 7, 31, 32, 33, 50, 64, 100, 130, 200]


@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("bits", [2, 4])
def test_quantization_is_that_of_the_textbook(columns, bits):
    weight, covariance = problem(16, columns)
    decide = rounder(Grid(bits, 16), weight)
    chosen, _ = solve(weight, factorize(covariance, DAMPING), decide)
    expected = textbook(weight, damped(covariance), decide)
    # A value on the edge between two levels may fall either way in float32, and takes its row's later columns with it.
    differ = (chosen.double() - expected).abs() > 1e-4
    assert float(differ.any(1).float().mean()) <= 1 / 16
    assert loss_of(weight, chosen, damped(covariance)) == pytest.approx(loss_of(weight, expected, damped(covariance)), rel=1e-2)


@pytest.mark.parametrize("columns", SIZES)
def test_a_linear_decision_matches_to_the_last_digits(columns):
    weight, covariance = problem(16, columns)
    shares = torch.linspace(0, 1, columns)
    decide = lambda k, column: column * float(shares[k])
    chosen, _ = solve(weight, factorize(covariance, DAMPING), decide)
    torch.testing.assert_close(chosen.double(), textbook(weight, damped(covariance), decide), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", SIZES)
def test_the_loss_is_exact(columns):
    weight, covariance = problem(16, columns)
    chosen, lost = solve(weight, factorize(covariance, DAMPING), rounder(Grid(3, 16), weight))
    assert chosen.shape == weight.shape
    each = [loss_of(row[None], own[None], damped(covariance)) for row, own in zip(weight, chosen)]
    torch.testing.assert_close(lost, torch.tensor(each, dtype=torch.float64), rtol=1e-3, atol=0)


def test_errors_of_the_first_column_are_made_up_for_in_full():
    weight, covariance = problem(4, 40)
    chosen, _ = solve(weight, factorize(covariance, DAMPING), lambda k, column: column * 0 if k == 0 else column)
    h = damped(covariance)
    best = weight.double()[:, 1:] + weight.double()[:, :1] * torch.linalg.solve(h[1:, 1:], h[1:, :1]).T  # stationary in all others
    assert not chosen[:, 0].any()
    torch.testing.assert_close(chosen[:, 1:].double(), best, rtol=1e-4, atol=1e-4)


# Spans


def halves(columns, span, covariance):
    """Whole problem with the half of each span's entries of least cost taken out: the chosen values, and the masks."""
    weight, found = problem(16, columns)[0], {}

    def keep_half(name, low, high, corrected, curvature):
        scores = (corrected.square() * curvature[:, None]).T
        kept = torch.zeros_like(scores, dtype=torch.bool).flatten()
        kept[scores.flatten().argsort(descending=True)[: scores.numel() // 2]] = True
        found.setdefault(name, torch.ones(16, columns, dtype=torch.bool))[:, low:high] = kept.view_as(scores)

    factor = factorize(covariance, DAMPING)
    decide = lambda name: lambda k, column: column * found[name][:, k]
    ours = lambda low, high, c: keep_half("ours", low, high, c, factor.curvature[low:high])
    theirs = lambda low, high, c, upper: keep_half("theirs", low, high, c, upper[low:high] ** -2)
    chosen, _ = solve(weight, factor, decide("ours"), span=span, prepare=ours)
    expected = textbook(weight, damped(covariance), decide("theirs"), span, theirs)
    return chosen, expected, found


ALIGNED, RAGGED = [4, 16, 32, 64, 128], [3, 6, 24, 33, 40, 100]


@pytest.mark.parametrize("columns, span", [(4, 4), (50, 64), (64, 64), (100, 128), (128, 128)])
def test_masks_of_one_span_are_those_of_the_textbook(columns, span):
    chosen, expected, found = halves(columns, span, problem(16, columns)[1])
    assert torch.equal(found["ours"], found["theirs"])
    torch.testing.assert_close(chosen.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("columns", [160, 200])
@pytest.mark.parametrize("span", [*ALIGNED, *RAGGED])
def test_masks_of_several_spans_are_those_of_the_textbook(columns, span):
    _, _, found = halves(columns, span, problem(16, columns)[1])
    assert float((found["ours"] != found["theirs"]).float().mean()) < 1e-3


def seen_first(columns, span):
    """Largest difference from the textbook of the first column of each span, as ``prepare`` sees it, and the spans."""
    weight, covariance = problem(8, columns)
    decide, ours, theirs = lambda k, column: column * (k % 3) / 3, {}, {}
    solve(weight, factorize(covariance, DAMPING), decide, span=span, prepare=lambda low, high, c: ours.update({(low, high): c[0].clone()}))
    textbook(weight, damped(covariance), decide, span, lambda low, high, c, _: theirs.update({(low, high): c[0]}))
    return max(float((ours[at].double() - theirs[at]).abs().max()) for at in theirs), ours


@pytest.mark.parametrize("columns", [50, 130])
@pytest.mark.parametrize("span", [*ALIGNED, *RAGGED])
def test_every_span_is_prepared_once_and_its_first_column_is_right(columns, span):
    worst, spans = seen_first(columns, span)
    assert list(spans) == [(low, min(low + span, columns)) for low in range(0, columns, span)]
    assert worst < 1e-3


@pytest.mark.parametrize("span", [*ALIGNED, *RAGGED])
def test_a_span_is_prepared_as_it_ends_where_nothing_more_changes(span):
    weight, covariance = problem(8, 130)
    decide, seen = lambda k, column: column * 0 if k < 2 else column, {}
    chosen, _ = solve(weight, factorize(covariance, DAMPING), decide, span=span, prepare=lambda low, _, c: seen.update({low: c.clone()}))
    for low in range(span, 130, span):
        torch.testing.assert_close(seen[low].T, chosen[:, low : low + span], rtol=1e-3, atol=1e-3)


# Factorization


def test_factors_give_the_damped_covariance():
    covariance = problem(1, 50)[1]
    factor = factorize(covariance, 0.1)
    m, d = factor.coupling.double(), factor.curvature.double()
    assert torch.equal(m, m.triu()) and torch.equal(m.diagonal(), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close((m * d) @ m.T, damped(covariance, 0.1), rtol=1e-5, atol=1e-4 * float(covariance.diagonal().mean()))
    inverse = torch.linalg.inv(damped(covariance, 0.1)[-7:, -7:])
    assert float(d[-7] * inverse[0, 0]) == pytest.approx(1, rel=1e-4)  # the curvature that remains
    assert (factor.damping, factor.retries) == (0.1, 0)


def test_inputs_are_left_as_they_were():
    weight, covariance = problem(4, 40)
    before = weight.clone(), covariance.clone(), covariance.double()
    wide = covariance.double()
    factor = factorize(covariance, DAMPING)
    factorize(wide, DAMPING)
    coupling = factor.coupling.clone()
    solve(weight, factor, lambda k, column: column.round_())
    assert torch.equal(weight, before[0]) and torch.equal(covariance, before[1]) and torch.equal(wide, before[2])
    assert torch.equal(factor.coupling, coupling)


def test_dead_columns_take_part_without_harm():
    weight, covariance = problem(8, 60)
    dead = torch.arange(60) % 5 == 0
    covariance[dead] = 0
    covariance[:, dead] = 0
    decide = rounder(Grid(3, 16), weight)
    factor = factorize(covariance, DAMPING)
    chosen, lost = solve(weight, factor, decide)
    assert factor.retries == 0 and torch.isfinite(chosen).all()
    # Nothing reaches them and they reach nothing: they are rounded where they stand, the others as if they were not there.
    assert torch.equal(chosen[:, dead], torch.stack([decide(k, weight[:, k]) for k in dead.nonzero()[:, 0].tolist()], 1))
    h = damped(covariance)
    h[dead, dead] = float(covariance.diagonal().mean()) * (1 + DAMPING)
    assert float(lost.sum()) == pytest.approx(loss_of(weight, chosen, h), rel=1e-3)


def test_a_covariance_of_zeros_rounds_to_nearest():
    weight = problem(8, 40)[0]
    decide = rounder(Grid(3, 16), weight)
    chosen, _ = solve(weight, factorize(torch.zeros(40, 40), DAMPING), decide)
    assert torch.equal(chosen, torch.stack([decide(k, weight[:, k]) for k in range(40)], 1))


def rank_one():
    inputs = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    return inputs.T @ inputs


def test_raised_damping_is_counted():
    ordinary, starved = factorize(rank_one(), 0.01), factorize(rank_one(), 1e-9)
    assert (ordinary.retries, ordinary.damping) == (0, 0.01)
    assert 1 <= starved.retries <= 6 and starved.damping == pytest.approx(1e-9 * 10**starved.retries)
    m = starved.coupling.double()
    expected = damped(rank_one(), starved.damping)
    torch.testing.assert_close((m * starved.curvature.double()) @ m.T, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("damping", [0.0, 1e-20])
def test_damping_that_cannot_help_is_told(damping):
    with pytest.raises(ModelError, match=r"solver: no damping up to .* makes the covariance positive definite\. Use more"):
        factorize(rank_one(), damping)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_covariance_that_is_not_finite_is_refused(value):
    covariance = torch.eye(4)
    covariance[1, 2] = value
    with pytest.raises(ModelError, match=r"covariance of inputs must be finite, holds NaN or Inf\. Check the calibration data"):
        factorize(covariance, DAMPING)


# Precision


HARD = {
    "ordinary": lambda chance, columns: torch.randn(2 * columns, columns, generator=chance),
    "rank of 16": lambda chance, columns: torch.randn(16, columns, generator=chance),
    "rank of 1": lambda chance, columns: torch.randn(1, columns, generator=chance),
    "outliers": lambda chance, columns: (
        torch.randn(16, columns, generator=chance) * torch.where(torch.arange(columns) % 100 == 3, 1000.0, 1.0)
    ),
    "all but equal": lambda chance, columns: (
        torch.randn(99, 1, generator=chance) + 1e-4 * torch.randn(99, columns, generator=chance)
    ),
}  # fmt: skip


@pytest.mark.parametrize("damping", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("kind", HARD)
def test_the_precision_that_is_taken_leaves_two_digits(kind, damping):
    chance = torch.Generator().manual_seed(0)
    inputs = HARD[kind](chance, 300)
    covariance, weight = inputs.T @ inputs, torch.randn(64, 300, generator=chance)
    factor = factorize(covariance, damping)
    exact = torch.linalg.cholesky(damped(covariance, factor.damping).flip(0, 1)).diagonal().flip(0).square()
    assert float((factor.curvature / exact - 1).abs().max()) < 1e-2
    decide, h = rounder(Grid(3, 60), weight), damped(covariance, factor.damping)
    # Values on the edge between two levels fall either way; that is chance, and small.
    assert loss_of(weight, solve(weight, factor, decide)[0], h) == pytest.approx(loss_of(weight, textbook(weight, h, decide), h), rel=5e-2)


@pytest.mark.parametrize("threads", [2, 3])
def test_factors_have_the_same_bits_with_any_number_of_threads(threads):
    covariance, before = problem(1, 700)[1], torch.get_num_threads()
    found = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(factorize(covariance, DAMPING))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].coupling, found[1].coupling) and torch.equal(found[0].curvature, found[1].curvature)


def test_an_order_is_that_of_the_columns():
    covariance = problem(1, 50)[1]
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    ordered, plain = factorize(covariance, DAMPING, order), factorize(covariance[order][:, order].clone(), DAMPING)
    assert torch.equal(ordered.coupling, plain.coupling) and torch.equal(ordered.curvature, plain.curvature)
