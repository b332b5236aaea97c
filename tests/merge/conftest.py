"""Tensors to merge, and a slow twin of what is tested."""

import pytest
import torch

from modicum.merging.merge import merge


@pytest.fixture
def tensors():
    """A base and changes of it, of several tensors, in float64: ``tensors(count)``."""

    def made(count, *, seed=0, size=0.1, shapes=((24, 16), (30,))):
        draw = torch.Generator().manual_seed(seed)
        base = {f"t{place}": torch.randn(shape, generator=draw, dtype=torch.float64) for place, shape in enumerate(shapes)}
        others = [
            {name: value + size * torch.randn(value.shape, generator=draw, dtype=torch.float64) for name, value in base.items()}
            for _ in range(count)
        ]
        return base, others

    return made


@pytest.fixture
def merged():
    """What a method makes: ``merged(text, base, others, weights)``."""
    return lambda text, base, others, weights=None, **more: merge(base, others, method=text, weights=weights, **more).tensors


@pytest.fixture
def same():
    """Whether tensors are those of a twin, in float64."""

    def compare(found, wanted, bound=1e-12):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=bound, atol=bound)

    return compare
