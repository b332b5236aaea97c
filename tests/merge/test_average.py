"""The mean is nearer to what models scatter about than any of them."""

import pytest
import torch

from modicum.merge.average import Average
from modicum.merging.merge import merge


def test_the_mean_is_nearer_to_the_centre(tensors, merged, same):
    base, others = tensors(8)
    found = merged("average", base, others)
    distance = lambda one: float(sum((one[name] - base[name]).square().sum() for name in base)) ** 0.5
    assert distance(found) < 0.5 * min(map(distance, others))
    weights = [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]
    same(merged("average", base, others, weights), {name: sum(w * o[name] for w, o in zip(weights, others)) / 10 for name in base})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_two_models_of_16_bits_are_averaged_at_once(dtype):
    """In one pass, as in float64 up to one rounding; what is negative nothing in both stays that; no difference is too large."""
    draw = torch.Generator().manual_seed(0)
    one, two = ((torch.randn(5000, generator=draw) * 10.0 ** torch.randint(-3, 2, (5000,), generator=draw)).to(dtype) for _ in range(2))
    one[:3], two[:3] = torch.tensor([-0.0, -0.0, 0.0]), torch.tensor([-0.0, 0.0, -0.0])
    for weights in ([1.0, 1.0], [1.0, 3.0], [5.0, 2.0]):
        made = Average().at_once(one, [one, two], weights, dtype)
        shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        wanted = shares[0] * one.double() + shares[1] * two.double()
        found = merge({"w": one}, [{"w": one}, {"w": two}], method="average", weights=weights).tensors["w"]
        near = (found.double() - wanted).abs() <= torch.finfo(dtype).eps / 2 * wanted.abs().clamp(min=torch.finfo(dtype).tiny) + 1e-6 * (
            one.double().abs() + two.double().abs()
        )
        assert made is not None and torch.equal(found, made) and bool(near.all())
        assert torch.signbit(found[:3]).tolist() == [True, False, False]
    assert Average().at_once(one, [one, two.float()], [1.0, 1.0], dtype) is None
    most = torch.full((3,), torch.finfo(dtype).max, dtype=dtype)
    assert torch.equal(merge({"w": most}, [{"w": most}, {"w": -most}], method="average").tensors["w"], torch.zeros_like(most))
