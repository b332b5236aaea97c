"""Every edit keeps the mean change; signs hold a change in a bit an entry; at left 0 it is DARE."""

import torch

from modicum.merge import DeltaEditing
from modicum.merge._family import At


def test_dropped_entries_keep_a_part_and_the_mean_stays():
    base, one = torch.zeros(50), torch.linspace(-1, 2, 50)
    made = lambda seed: DeltaEditing(drop=0.75, left=0.4).combine(base, [one], [1.0], At("w", (50,), (1.0,), seed=seed))
    draws = torch.stack([made(seed) for seed in range(2000)])
    assert bool(((draws.mean(0) - one).abs() < 5 * draws.std(0) / 2000**0.5 + 1e-5).all())
    assert sorted({round(float(value), 4) for value in (draws / one).reshape(-1)}) == [0.4, 2.8]


def test_it_is_dare_and_bitdelta(tensors, merged, same):
    base, (one, other) = tensors(2)
    same(
        merged("delta_editing drop=0.5", base, [one]),
        {name: base[name] + (one[name] - base[name]) * 2 * (kept(base, one, merged)[name]) for name in base},
    )
    found = merged("delta_editing signs=true scale=1.5", base, [one, other])
    wanted = dict(base)
    for model in (one, other):
        for name in base:
            change = model[name] - base[name]
            wanted[name] = wanted[name] + 1.5 * change.sign() * change.abs().mean()
    same(found, wanted)


def kept(base, one, merged):
    return {name: value != base[name] for name, value in merged("delta_editing drop=0.5", base, [one]).items()}
