"""Between a base and what was tuned from it lies what is better than both where their errors differ."""

import torch


def test_the_middle_is_better_where_errors_differ(tensors, merged):
    base, (one,) = tensors(1)
    target = {name: 0.5 * (base[name] + one[name]) for name in base}
    error = lambda found: float(sum((found[name] - target[name]).square().sum() for name in base))
    assert error(merged("wise_ft", base, [one])) < 1e-20 < min(error(base), error(one))
    ends = merged("wise_ft", base, [one], [0.0]), merged("wise_ft", base, [one], [1.0])
    assert all(torch.equal(ends[0][name], base[name]) and torch.equal(ends[1][name], one[name]) for name in base)
