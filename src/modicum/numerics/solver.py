"""One blocked solver for second-order rounding: GPTQ quantizes with it, SparseGPT prunes with it.

Both minimise ``tr((W - Q) H (W - Q)ᵀ)`` over Q column by column. With the factorization ``H = M D Mᵀ`` (M unit upper triangular, D
diagonal) the loss is ``Σ_k D_k ‖c_k - q_k‖²``, where ``c_k = w_k + Σ_{j<k} (w_j - q_j) M_jk`` is column k as corrected for the errors
already made. So one Cholesky factorization and no inverse is enough, the exact loss falls out, and 1/[H⁻¹]_kk of what remains
is D_k. Columns are halved recursively: all but the smallest pieces' corrections are matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch

from modicum.core.blocks import Blocks, spans
from modicum.core.errors import ModelError
from modicum.core.finite import finite
from modicum.numerics.threads import single_threaded, threads

# Columns corrected one by one; above it, by matrix products. Measured: 16 and 32 are equally fast, 8 and 64 slower.
_LEAF = 32
_RETRIES = 6
# Rows of a covariance that are put in order at a time.
_ROWS = 512
# Rows come in so many: what a product with a vector gives a row then depends on that row alone.
LANES = 16
# Weights solved at a time; the solver holds 24 bytes for each.
_SLAB = 1 << 24


@dataclass(frozen=True)
class Factor:
    """``M`` (columns, columns) unit upper triangular and ``D`` (columns,) of a damped covariance, and the damping that was needed.

    Columns of ``M`` lie together in memory.
    """

    coupling: torch.Tensor
    curvature: torch.Tensor
    damping: float
    retries: int


@dataclass(frozen=True)
class BlockFactor:
    """Factors of a covariance in blocks, one after the other: ``D`` of all, and the most damping that one needed."""

    parts: tuple[Factor, ...]
    curvature: torch.Tensor
    damping: float
    retries: int


@overload
def factorize(covariance: torch.Tensor, damping: float, order: torch.Tensor | None = None) -> Factor: ...
@overload
def factorize(covariance: torch.Tensor | Blocks, damping: float, order: torch.Tensor | None = None) -> Factor | BlockFactor: ...
def factorize(covariance: torch.Tensor | Blocks, damping: float, order: torch.Tensor | None = None) -> Factor | BlockFactor:
    """Factorize ``covariance`` (columns, columns), its columns in ``order`` if one is given, plus ``damping`` times its mean diagonal.

    Of one in blocks each is factorized by itself, with the mean of all; ``order`` then keeps to the blocks.
    Where it is not positive definite the damping is multiplied by ten, at most six times; ``retries`` counts them so that the caller
    can say so. Columns whose inputs were always zero get the mean diagonal. In float32 where that leaves two digits of every curvature,
    otherwise in float64. Raises ``ModelError`` where nothing helps.
    """
    mean = float(covariance.diagonal().double().mean())
    if not isinstance(covariance, Blocks):
        return _factorized(covariance, damping, order, mean)
    own = lambda columns: None if order is None else order[columns] - columns.start
    parts = tuple(_factorized(square, damping, own(columns), mean) for columns, square in spans(covariance))
    hardest = max(parts, key=lambda part: part.retries)
    return BlockFactor(parts, torch.cat([part.curvature for part in parts]), hardest.damping, hardest.retries)


def _factorized(covariance: torch.Tensor, damping: float, order: torch.Tensor | None, mean: float) -> Factor:
    if not finite(covariance):
        raise ModelError("solver: the covariance of inputs must be finite, holds NaN or Inf. Check the calibration data and the model.")
    backwards = (torch.arange(len(covariance), device=covariance.device) if order is None else order).flip(0)
    diagonal = covariance.diagonal()[backwards].double()
    base = mean if mean > 0 else 1.0
    diagonal[diagonal <= 0] = base
    for retry in range(_RETRIES + 1):
        damped = diagonal + damping * 10**retry * base
        for dtype in (torch.float32, torch.float64):
            # Seen by columns it is what LAPACK takes, and no copy is made.
            work = torch.empty(covariance.shape, dtype=dtype, device=covariance.device).mT
            for low in range(0, len(backwards), _ROWS):
                rows = backwards[low : low + _ROWS]
                work.mT[low : low + len(rows)] = covariance[rows][:, backwards]
            work.diagonal().copy_(damped)
            with single_threaded():
                failed = torch.linalg.cholesky_ex(work, out=(work, torch.empty((), dtype=torch.int32, device=work.device))).info
            scale = work.diagonal().clone()
            if not failed and (dtype == torch.float64 or accurate(scale.square() / damped)):
                return Factor(_flipped(work.div_(scale).mT).mT, scale.flip(0).square().float(), damping * 10**retry, retry)
    raise ModelError(
        f"solver: no damping up to {damping * 10**_RETRIES:g} makes the covariance positive definite. Use more calibration tokens."
    )


def _flipped(matrix: torch.Tensor) -> torch.Tensor:
    """A square matrix with both axes turned round, in float32."""
    turned = torch.empty(matrix.shape, device=matrix.device)
    for low in range(0, len(matrix), _ROWS):
        rows = matrix[low : low + _ROWS]
        turned[len(matrix) - low - len(rows) : len(matrix) - low] = rows.flip(0, 1)
    return turned


def accurate(left: torch.Tensor) -> bool:
    """Whether float32 has two digits of every curvature; ``left`` (columns,) is what remains of each column's energy given those decided later.

    What remains is what elimination did not cancel; its rounding errors, relative to the energy, grow as the root of the columns.
    """
    return bool((left > 64 * torch.finfo(torch.float32).eps * len(left) ** 0.5).all())


def metric(factor: Factor | BlockFactor, low: int, high: int) -> torch.Tensor:
    """What errors of the columns [low, high) cost together once all later columns make up for them: A (columns, columns) of ``eᵀ A e``."""
    if isinstance(factor, BlockFactor):
        for part in factor.parts:
            if low < len(part.curvature):
                return metric(part, low, high)
            low, high = low - len(part.curvature), high - len(part.curvature)
    assert isinstance(factor, Factor)
    corner = factor.coupling[low:high, low:high]
    return (corner * factor.curvature[low:high]) @ corner.T


def slabs(weight: torch.Tensor) -> list[slice]:
    """Slices of rows to solve one after the other: rows do not meet in the solver, and its memory then has a bound."""
    count = max(1, _SLAB // max(1, weight.shape[1]))
    return [slice(low, low + count) for low in range(0, len(weight), count)]


def laned(weight: torch.Tensor) -> torch.Tensor:
    """A weight with rows of zeros below it up to a multiple of ``LANES``: so laid below each other, several are solved to the bit as each alone."""
    return torch.nn.functional.pad(weight, (0, 0, 0, -len(weight) % LANES))


def solve(weight: torch.Tensor, factor: Factor | BlockFactor, decide: Callable[[int, torch.Tensor], torch.Tensor], *, span: int = 0,
          prepare: Callable[[int, int, torch.Tensor], None] | None = None) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Choose Q (rows, columns) for float32 ``weight``; returns Q and what each row w loses, ``(w - q) H (w - q)ᵀ`` (rows,) in float64.

    ``decide(k, c)`` gives column k's values from its corrected ones ``c`` (rows,). Before the columns ``[lo, hi)`` of each span of
    ``span`` columns are decided, ``prepare(lo, hi, C)`` sees them corrected, (hi - lo, rows): masks and groups that need a look at several
    columns are fixed there.
    """
    if isinstance(factor, BlockFactor):
        return _solved_by_block(weight, factor, decide, span, prepare)
    rows, original = len(weight), laned(weight).T.contiguous()
    corrected = original.clone()
    chosen = torch.zeros_like(original)
    error = torch.empty_like(original)
    columns, coupling = len(original), factor.coupling
    # The same memory as numpy sees it, whose calls cost a quarter of torch's where rows are few.
    known, looked, picked, missed = (values.numpy() for values in (original, corrected, chosen, error))

    # Pieces end where spans do: a span is complete when it is prepared.
    piece = _LEAF // span * span if 0 < span <= _LEAF else _LEAF

    def ahead(low: int, high: int) -> torch.Tensor:
        """Columns [low, high) at their best given those before; each lacks what the ones between would add, by forward substitution."""
        lacking = original[low:high] - corrected[low:high]
        with single_threaded():
            made = torch.linalg.solve_triangular(coupling[low:high, low:high].T, lacking, upper=False, unitriangular=True)
        return (original[low:high] - made)[:, :rows]

    def leaf(low: int, high: int) -> None:
        since = low  # where the piece, or the span that was prepared in it, begins
        for k in range(low, high):
            if prepare is not None and span and k % span == 0:
                end = min(k + span, columns)
                if k > low:
                    corrected[k:end].addmm_(coupling[low:k, k:end].T, error[low:k])
                since = k
                prepare(k, end, ahead(k, end))
            elif k > since:
                looked[k] += torch.mv(error[since:k].T, coupling[since:k, k]).numpy()
            picked[k, :rows] = decide(k, corrected[k, :rows]).numpy()
            np.subtract(known[k], picked[k], out=missed[k])

    with np.errstate(all="ignore"):  # as in torch: what is not finite is told where a form is looked at
        for low, middle, high in _halves(0, columns, piece, span):
            if middle == low:
                leaf(low, high)
            else:
                # Of the few columns at the end, threads would each take rows by another kernel.
                with threads(1) if high - middle < piece else nullcontext():
                    corrected[middle:high].addmm_(coupling[low:middle, middle:high].T, error[low:middle])
    lost = torch.zeros(len(original[0]), dtype=torch.float64)
    for low in range(0, columns, _LEAF):
        few = slice(low, low + _LEAF)
        missed_by = (corrected[few] - chosen[few]).double()
        # Column after column: torch takes an order that differs with the number of rows.
        lost += torch.from_numpy(np.add.reduce(missed_by.square_().mul_(factor.curvature[few, None]).numpy(), axis=0))
    return chosen[:, :rows].T, lost[:rows]


def _solved_by_block(
    weight: torch.Tensor, factor: BlockFactor, decide: Callable[[int, torch.Tensor], torch.Tensor], span: int,
    prepare: Callable[[int, int, torch.Tensor], None] | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Blocks do not meet: each is solved by itself; none may cut a span."""
    chosen, loss, low = torch.empty_like(weight), torch.zeros(len(weight), dtype=torch.float64), 0
    for part in factor.parts:
        high = low + len(part.curvature)
        ready = None if prepare is None else lambda first, last, c, low=low: prepare(low + first, low + last, c)
        own = lambda k, column, low=low: decide(low + k, column)
        chosen[:, low:high], lost = solve(weight[:, low:high], part, own, span=span, prepare=ready)
        loss, low = loss + lost, high
    return chosen, loss


def _halves(low: int, high: int, piece: int, span: int) -> Iterator[tuple[int, int, int]]:
    """Steps (low, middle, high) in order: pieces [low, high) to decide where middle is low, else what [low, middle) does to [middle, high)."""
    if high - low <= piece:
        yield low, low, high
        return
    # While several spans remain, split between spans: then each is fully corrected before it is prepared.
    unit = span if high - low > span > _LEAF else piece
    middle = low + max(unit, (high - low) // 2 // unit * unit)
    yield from _halves(low, middle, piece, span)
    yield low, middle, high
    yield from _halves(middle, high, piece, span)
