"""What a run holds in memory whatever is spilled, and what of ``--ram`` that leaves for activations."""

from __future__ import annotations

from collections.abc import Iterable

from modicum.core.budget import readable
from modicum.core.errors import BudgetError
from modicum.core.memory import own_memory, trim
from modicum.data.splits import Batch, count_tokens
from modicum.models.model import Model

# Libraries that are loaded only when they are needed, and what the allocator keeps for itself.
_LATER_BYTES = 120_000_000
# Activations that must have room at the least.
_LEAST_BYTES = 32_000_000
# Bytes per entry of a covariance: it, and its factorization where float64 is needed.
_FACTORING = 16
# Bytes per weight of a unit: in float32, its codes, and its dense value while it is checked; more while a slab of it is solved.
_WHOLE, _SOLVING, _SLAB = 14, 24, 1 << 24
# Tensors of a layer's width that a forward holds at once for each token, and of the vocabulary's width.
_INNER, _LOGITS = 6, 3


def spare(model: Model, batch: Batch, ram: int | None) -> int | None:
    """Bytes that activations kept for later may take, or None without a limit. Raises ``BudgetError`` with the smallest workable ``ram``."""
    if ram is None:
        return None
    trim()
    needed = own_memory() + _LATER_BYTES + weights_held(model) + max(solving(model), forward(model, batch))
    if ram - needed < _LEAST_BYTES:
        raise BudgetError(f"--ram: must be at least {readable(needed + 2 * _LEAST_BYTES)} for this model, got {readable(ram)}.")
    return ram - needed


def whole_model(model: Model, batch: Batch) -> int:
    """Bytes that this process would have with the compressed model loaded whole, as Transformers does, and run on a batch."""
    trim()
    return own_memory() + model.dense_bytes + forward(model, batch)


def weights_held(model: Model) -> int:
    """Bytes of the weights that a streaming sweep will load: all outside blocks that are not there yet, one block of each of two sweeps, and its
    treated values.
    """
    if not model.weights.lazy:
        return 0
    trunk = [name for name in model.trunk if model.weights.held(name).device.type == "meta"]
    blocks = max((_size(model, block.parameters) for block in model.blocks.values()), default=0)
    return _size(model, trunk) + 3 * blocks


def solving(model: Model) -> int:
    """Bytes of the largest solve: a stage's covariances go with it, so that those of one unit are there at a time."""
    each = lambda unit: _FACTORING * unit.shape[1] ** 2 + _WHOLE * unit.size + _SOLVING * min(unit.size, _SLAB)
    return max(map(each, model.units.values()), default=0)


def forward(model: Model, batch: Batch) -> int:
    """Bytes of what a micro-batch's forward makes and lets go: inside a block, and at the head."""
    trunk, units = set(model.trunk), model.units.values()
    inside = max((max(unit.shape) for unit in units if unit.parameter not in trunk), default=0)
    head = lambda unit: unit.kind != "embedding" or model.is_causal  # a tied embedding is the head too
    outside = max((unit.shape[0] for unit in units if unit.parameter in trunk and head(unit)), default=0)
    return count_tokens([batch]) * model.dtype.itemsize * (_INNER * inside + _LOGITS * outside)


def _size(model: Model, names: Iterable[str]) -> int:
    return sum(model.weights.held(name).numel() * model.weights.dtype(name).itemsize for name in names)
