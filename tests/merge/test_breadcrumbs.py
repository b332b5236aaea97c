"""An outlier that would drown the other task is dropped with the noise; a slow twin sorts."""

import torch


def test_as_sorting_says(tensors, merged, same):
    base, others = tensors(2, shapes=((40, 25),))
    wanted = base["t0"].clone()
    for other in others:
        change = other["t0"] - base["t0"]
        order = change.abs().reshape(-1).sort(descending=True).values
        wanted += change * ((change.abs() < order[19]) & (change.abs() >= order[519]))
    same(merged("breadcrumbs density=0.5 gamma=0.02", base, others), {"t0": wanted})


def test_outliers_do_not_drown_the_rest(merged):
    base, one, other = ({"w": torch.zeros(100)} for _ in range(3))
    one["w"][:50], other["w"][:50] = 1.0, 1.0
    one["w"][0] = -1000.0
    found = merged("breadcrumbs density=0.49 gamma=0.01", base, [one, other], [0.5, 0.5])["w"]
    assert abs(float(found[0])) <= 0.5 < 400 < abs(float(merged("task_arithmetic", base, [one, other], [0.5, 0.5])["w"][0]))
    assert float(found[1]) >= 0.5
