"""Half way on the arc has the length of both ends, where the line is shorter."""

import math

import torch


def test_the_arc_keeps_the_length(tensors, merged, same):
    one, other = ({"w": torch.zeros(4, 4, dtype=torch.float64)} for _ in range(2))
    one["w"][0, 0], other["w"][0, 1] = 3.0, 3.0
    found = merged("slerp", one, [other], [1 / 3])["w"]
    assert abs(float(found.norm()) - 3) < 1e-12 and abs(math.atan2(float(found[0, 1]), float(found[0, 0])) - math.pi / 6) < 1e-12
    assert float(merged("wise_ft", one, [other], [1 / 3])["w"].norm()) < 2.3
    base, (first, second) = tensors(2)
    same(merged("slerp", first, [first, second], [1.0, 3.0]), merged("slerp", first, [second], [0.75]))
    same(merged("slerp", first, [{name: 2 * value for name, value in first.items()}]), {name: 1.5 * value for name, value in first.items()})
