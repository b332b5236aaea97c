"""Coefficients made of products are what the vectors themselves give."""

import torch


def test_as_vectors_say(tensors, merged, same):
    base, others = tensors(3)
    weights = [0.2, 0.5, 0.3]
    found, wanted = merged("multislerp", base, others, weights), {}
    for name in base:
        changes = [(other[name] - base[name]).reshape(-1) for other in others]
        units = [change / change.norm() for change in changes]
        mean = sum(w * u for w, u in zip(weights, units))
        mean = mean / mean.norm()
        tangent = sum(w * (u - (u @ mean) * mean) for w, u in zip(weights, units))
        angle = tangent.norm()
        turned = angle.cos() * mean + angle.sin() * tangent / angle
        wanted[name] = base[name] + (turned * sum(w * c.norm() for w, c in zip(weights, changes))).reshape(base[name].shape)
    same(found, wanted, 1e-10)


def test_directions_that_cancel_out_are_averaged(merged):
    base = {"w": torch.zeros(3)}
    assert float(merged("multislerp", base, [{"w": torch.ones(3)}, {"w": -torch.ones(3)}])["w"].abs().max()) == 0
