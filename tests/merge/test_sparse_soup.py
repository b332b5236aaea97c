"""The mean of models of one mask has that mask; another mask is refused, where the plain mean would fill it."""

import pytest

from modicum.core.errors import ModelError


def test_sparsity_is_that_of_the_parts(tensors, merged):
    base, others = tensors(3)
    masks = {name: value.abs() > 0.7 for name, value in base.items()}
    masked = lambda model: {name: value * masks[name] for name, value in model.items()}
    found = merged("sparse_soup", masked(base), list(map(masked, others)))
    assert all(bool(((found[name] != 0) == masks[name]).all()) for name in base)
    with pytest.raises(ModelError, match="t0: model 1 must be zero where the base is"):
        merged("sparse_soup", masked(base), [others[0], others[0]])
