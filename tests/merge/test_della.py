"""Large entries are kept more often, each is rescaled by its own probability, so nothing is biased; without a window it is DARE."""

import torch

from modicum.merge import Della
from modicum.merge._family import At


def test_large_entries_are_kept_more_often():
    row = torch.arange(1.0, 101.0)[None]
    drawn = lambda seed: Della(density=0.4, window=0.3).combine(torch.zeros(1, 100), [row], [1.0], At("w", (1, 100), (1.0,), seed=seed))
    draws = torch.stack([drawn(seed)[0] for seed in range(1500)])
    kept = (draws != 0).double().mean(0)
    wanted = torch.linspace(0.1, 0.7, 100, dtype=torch.float64)
    assert bool(((kept - wanted).abs() < 5 * (wanted * (1 - wanted) / 1500).sqrt() + 1e-4).all())
    assert bool(((draws.mean(0) - row[0]).abs() < 5 * draws.std(0) / 1500**0.5).all())


def test_without_a_window_it_is_dare(tensors, merged, same):
    base, others = tensors(2)
    same(merged("della density=0.5 window=0", base, others), merged("dare density=0.5 vote=true mean=true", base, others))
