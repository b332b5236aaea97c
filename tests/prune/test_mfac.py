import pytest
import torch

from modicum.core.slopes import Slopes
from modicum.core.unit import Stats
from modicum.prune import Magnitude, Mfac


def seen(window):
    return Stats(slopes=Slopes(len(window), window.sum(0), window.square().sum(0), window))


def dense(window, damping):
    """The damped information of each row of (m, rows, columns) as a matrix."""
    least = damping * float(window.square().mean())
    return [g.T @ g / len(g) + least * torch.eye(g.shape[1], dtype=g.dtype) for g in window.double().unbind(1)], least


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
def test_scores_and_moves_are_those_of_the_dense_inverse(damping):
    window, weight = torch.randn(6, 3, 20), torch.randn(3, 20)
    method = Mfac(keep=0.5, damping=damping)
    found, least = dense(window, damping)
    wanted = torch.stack([row.double().square() / F.inverse().diagonal() for row, F in zip(weight, found)]) / least
    torch.testing.assert_close(method.score(weight, seen(window)).double(), wanted, rtol=1e-4, atol=1e-6)
    value, mask = method.solve(weight, seen(window))
    for row, new, kept, F in zip(weight.double(), value.double(), mask, found):
        moved = torch.linalg.solve(F[kept][:, kept], F[kept][:, ~kept] @ row[~kept])
        torch.testing.assert_close(new[kept], row[kept] + moved, rtol=1e-4, atol=1e-5)


def test_one_at_a_time_it_is_the_diagonal_and_damped_away_magnitude(layer):
    thing = layer()
    stats = thing.stats(Mfac.needs)
    information = stats.slopes.window.float().square().mean(0)
    score = Mfac(block=1, damping=1e-5).score(thing.weight, stats)
    torch.testing.assert_close(score / score.mean(), (s := thing.weight.square() * information) / s.mean(), rtol=1e-2, atol=1e-4)
    assert torch.equal(Mfac(keep=0.3, damping=1e6).solve(thing.weight, stats)[1], Magnitude(keep=0.3).solve(thing.weight, stats)[1])


def test_the_loss_feels_less_of_it_than_of_magnitudes():
    """Gradients of a linear model's squared error on inputs of unlike scales: what the quadratic loses."""
    inputs = torch.randn(64, 48) * 10 ** torch.linspace(-1, 1, 48)
    window = torch.stack([torch.outer(error, x) for error, x in zip(torch.randn(64, 8), inputs)])
    weight = torch.randn(8, 48)
    lost = lambda value: float((window * (value - weight)).sum((1, 2)).square().sum())
    made = {
        name: m.solve(weight, seen(window)) for name, m in {"mfac": Mfac(), "still": Mfac(update=False), "magnitude": Magnitude()}.items()
    }
    losses = {name: lost(value * mask) for name, (value, mask) in made.items()}
    assert losses["mfac"] < losses["still"] < 0.5 * losses["magnitude"]


def test_blocks_need_not_divide_the_columns_and_no_gradient_leaves_magnitudes():
    window, weight = torch.randn(4, 5, 30), torch.randn(5, 30)
    scores = Mfac(block=16).score(weight, seen(window))
    assert scores.shape == weight.shape and bool(scores.isfinite().all())
    value, mask = Mfac(keep=0.5).solve(weight, seen(torch.zeros(4, 5, 30)))
    assert torch.equal(value, weight) and torch.equal(mask, Magnitude(keep=0.5).solve(weight, Stats())[1])
    assert torch.equal(Mfac(pattern="2:4").solve(weight, seen(window))[1][:, :28].view(5, 7, 4).sum(-1), torch.full((5, 7), 2))
