"""Gradients by weight, sequence by sequence: what methods ask for that weigh a weight by what the loss feels of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import partial
from typing import Any

import torch

from modicum.core.slopes import Slopes
from modicum.core.unit import Unit
from modicum.data.splits import Batch, each_row
from modicum.models.model import Model
from modicum.sweep.collect import has_rows, input_rows
from modicum.sweep.outputs import CLASSES
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.reverse import Reverse
from modicum.sweep.script import Script
from modicum.sweep.spill import SpillPool

# Of a sequence by its number, a unit and the gradient (rows, columns) of the sequence's loss: it may be changed.
Seen = Callable[[int, Unit, torch.Tensor], None]


def weight_gradients(
    model: Model, batches: Sequence[Batch], script: Script, units: Set[str], seed: int = 0, *, window: int = 0, drawn: bool = False,
    pool: SpillPool | None = None, ranks: Ranks = LONE, tick: Callable[[], None] = lambda: None,
) -> dict[str, Slopes]:  # fmt: skip
    """Sums of single sequences' gradients by weight, of the named ``units``; of the last ``window`` sequences the gradients themselves.

    A sequence's gradient is ``Gᵀ X`` of the output gradients (positions, rows) and inputs (positions, columns) of all calls, and never more than
    one unit's is held. The loss is the mean cross-entropy of the text's own next tokens where the model is a causal language model, otherwise,
    or where it is ``drawn``, what is drawn of the model's own distribution (``outputs.likelihood``): its gradient squared is then the Fisher
    information, and its mean is zero. Units whose inputs cannot be written as rows are absent.

    *Shapes*: see ``Slopes``; ``window`` is bfloat16, zeros where fewer sequences came.

    *Needs and cost*: one block's weights in memory, a forward, a recomputation and a backward for each sequence, and a product of the units' own
    size; 8 bytes per weight and 2 for each sequence of the window, in files where ``pool`` has no room.

    *Raises*: ``ModelError`` where the model cannot be differentiated.
    """
    sums: dict[str, Slopes] = {}
    pool = pool or SpillPool(None)

    def add(number: int, unit: Unit, gradient: torch.Tensor) -> None:
        if unit.name not in sums:
            zeros = partial(torch.zeros, *unit.shape)
            kept = torch.zeros(window, *unit.shape, dtype=torch.bfloat16) if window else None
            sums[unit.name] = Slopes(0, zeros(), zeros(), kept)
            pool.admit([value for value in (sums[unit.name].total, sums[unit.name].square, kept) if value is not None])
        mine, gradient = sums[unit.name], gradient.cpu()
        mine.total.add_(gradient)
        mine.square.addcmul_(gradient, gradient)
        if mine.window is not None:
            mine.window[number % window] = gradient

    count = each_gradient(model, batches, script, units, add, seed, drawn=drawn, ranks=ranks, tick=tick)
    parts = {f"{name} {part}": value for name, mine in sums.items() for part, value in _tensors(mine).items()}
    parts = ranks.union("gradients by weight", parts)
    names = dict.fromkeys(name.rpartition(" ")[0] for name in parts)
    return {name: Slopes(count, *(parts.get(f"{name} {part}") for part in ("total", "square", "window"))) for name in names}  # type: ignore[arg-type]


def each_gradient(
    model: Model, batches: Sequence[Batch], script: Script, units: Set[str], seen: Seen, seed: int = 0, *, drawn: bool = False,
    ranks: Ranks = LONE, tick: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """Show every sequence's gradient by weight, unit by unit as a backward pass comes by; the number of sequences, of all ranks together.

    Raises ``ModelError`` where the model cannot be differentiated.
    """
    rows = [row for batch in batches for row in (each_row(batch) if not script.whole else [batch])]
    reverse = _ByWeight(model, script, torch.Generator().manual_seed(seed), units, seen, drawn)
    model.weights.load(model.trunk)
    for number, row in enumerate(rows):
        if number % ranks.count == ranks.rank:
            reverse.number = number
            reverse.add(row)
        else:
            reverse.skip(row)
        tick()
    return len(rows)


def _tensors(slopes: Slopes) -> dict[str, torch.Tensor]:
    found = {"total": slopes.total, "square": slopes.square}
    return found if slopes.window is None else found | {"window": slopes.window}


class _ByWeight(Reverse):
    """Backwards of single sequences that show the gradients of weights instead of adding up those of outputs."""

    number = 0

    def __init__(self, model: Model, script: Script, generator: torch.Generator, units: Set[str], seen: Seen, drawn: bool):
        super().__init__(model, script, generator, 0, SpillPool(None))
        self.seen, self.drawn = seen, drawn
        self.wanted = {name for name in units if not script.data_free(model.units[name])}
        self.direct = {parameter: unit for parameter, unit in self.direct.items() if unit.name in self.wanted}

    def loss(self, output: Any, batch: Batch) -> tuple[torch.Tensor, int]:
        found = None if self.drawn or not self.model.is_causal else _next_tokens(self.script, output, batch)
        if found is not None:
            return found, 1
        total, draws = super().loss(output, batch)
        return total / max(draws, 1), draws

    def _directly(self, unit: Unit, gradient: torch.Tensor) -> None:
        self.seen(self.number, unit, gradient)

    def _moment(self, moments: dict[str, torch.Tensor], unit: Unit, rows: torch.Tensor) -> None:
        pass

    def _see(self, unit: Unit, name: str, inputs: torch.Tensor, *, routed: bool = False) -> Any:
        """The inputs themselves, as they are until their gradients come."""
        module = self.modules[name]
        if unit.name not in self.wanted or not inputs.is_floating_point() or not has_rows(unit, module):
            return None
        return partial(input_rows, unit, module, inputs.detach())

    def _keep(self, unit: Unit, pieces: Iterable[torch.Tensor], met: Any) -> None:
        if met is None:
            return
        gradient = torch.zeros(unit.shape, device=self.model.weights.device)
        for outer, inner in _side_by_side(iter(pieces), met()):
            gradient.addmm_(outer.T, inner.float())
        self.seen(self.number, unit, gradient)


def _side_by_side(left: Iterator[torch.Tensor], right: Iterator[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same rows of two streams, as many at a time as both have at hand."""
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        count = min(len(one), len(other))
        yield one[:count], other[:count]
        one = one[count:] if count < len(one) else next(left, None)
        other = other[count:] if count < len(other) else next(right, None)


def _next_tokens(script: Script, output: Any, batch: Batch) -> torch.Tensor | None:
    """Mean cross-entropy of the tokens that come next; None where the output is not the logits of a batch's tokens."""
    part, value = script.outputs.of(output)[0]
    ids = batch.get("input_ids") if isinstance(batch, dict) else None
    if part.kind != CLASSES or ids is None or value.shape[:-1] != ids.shape or ids.shape[-1] < 2:
        return None
    ids, real = ids.to(value.device), part.real(batch, value)
    wanted = torch.ones_like(ids[:, 1:], dtype=torch.bool) if real is None else real[:, 1:] & real[:, :-1]
    if not bool(wanted.any()):
        return None
    return torch.nn.functional.cross_entropy(value[:, :-1][wanted].float(), ids[:, 1:][wanted])
