"""A selection finds what a sort has at that place."""

import pytest
import torch

from modicum.numerics.ordered import nth_largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (5, 16)])
def test_it_is_the_one_that_a_sort_has_there(dtype, shape):
    values = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for n in range(1, shape[-1] + 1):
        assert torch.equal(nth_largest(values, n), values.sort(dim=-1, descending=True).values[..., n - 1])
