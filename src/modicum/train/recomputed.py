"""Blocks whose activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from modicum.core.errors import ModelError
from modicum.models.structure import find_blocks
from modicum.models.weights import Weights


@contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """Inside, each block of a module keeps what it was given alone, and computes the rest anew for its gradient: a third more time, and memory of one
    block. Chance is the same both times; gradients are those of before to the bit. Outside nothing is left behind.

    Raises ``ModelError`` for a module without repeated blocks.
    """
    blocks = find_blocks(module, Weights(module))
    if not blocks:
        raise ModelError(f"{type(module).__name__}: must have repeated blocks to be computed again, has none. Leave out --recompute.")
    with ExitStack() as stack:
        for name in blocks:
            block = module.get_submodule(name)
            had = block.__dict__.get("forward")
            block.__dict__["forward"] = partial(checkpoint, block.forward, use_reentrant=False)
            stack.callback(_back, block, had)
        yield


def _back(block: nn.Module, had: Any) -> None:
    if had is None:
        del block.__dict__["forward"]
    else:
        block.__dict__["forward"] = had
