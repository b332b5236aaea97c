"""Whether forwards may stand suspended beside each other. It is tried: what they share may lie in a closure, a hook, a cache of a package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from modicum.core.errors import ModelError, quoted
from modicum.core.finite import finite
from modicum.data.splits import Batch, chance_of, each_row
from modicum.models.model import Model
from modicum.sweep.repeated import Loading
from modicum.sweep.suspend import Arrival, Chain, Stop

if TYPE_CHECKING:
    from modicum.sweep.script import Script

# Share of the largest number of an output by which two runs of one forward may differ on a processor; elsewhere sums have no order.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
_COARSE = 1e-2
# What of an output's energy makes it another one.
_OTHER = 1e-6
DRAWS = (
    "forwards draw random numbers: on each batch the same ones in the original and in the compressed model, from a seed that the batch gives; "
    "with other draws their outputs differ by chance too"
)
TURNS = (
    "forwards share state outside of their modules, which would mix where batches stand side by side: batches run one after the other and each "
    "layer's inputs take a pass of their own, which is slower; blocks are neither dropped nor held one at a time"
)


def shares_state(model: Model, script: Script, stops: Sequence[str], batch: Batch, output: Any, others: Iterable[Batch]) -> bool:
    """Whether forwards disturb each other where they stand side by side: that of ``batch``, which gave ``output`` alone, and another's.

    Raises ``ModelError`` where the forward gives one batch two outputs whatever stands beside it, or does so even one after the other.
    """
    other = _other(batch, others)
    if other is None:
        return False
    # What is shared may be left by the forward before, or by the last of all.
    trial, four = _Trial(model, script, stops), [batch, other, batch, other]
    mine = _read(script, output)
    if _alike(mine, trial.beside(four), _rounding):
        return False
    if not _alike(mine, trial.beside([batch]), _steady):
        if trial.raised is not None:
            raise ModelError(
                f"{model.name}: its forward must run again on the same batch; {trial.where} it raises {type(trial.raised).__name__}: "
                f"{quoted(trial.raised)}. Keep nothing between calls that a second one does not find as the first did."
            ) from trial.raised
        raise ModelError(
            f"{model.name}: must give a batch the same output each time, its own differs from itself. Draw from a generator that forward "
            "seeds, or leave chance out in evaluation mode."
        )
    if not _alike(mine, trial.beside(four, in_turn=True), _steady):
        raise ModelError(
            f"{model.name}: its forward must depend on its batch alone, it depends on what ran before it. Keep nothing between calls, "
            "or keep it on the module."
        )
    return True


def _other(batch: Batch, others: Iterable[Batch]) -> Batch | None:
    """An example that differs from ``batch``, of as many rows."""
    few = len(each_row(batch)) == 1
    examples = (row for each in others for row in (each_row(each)[:2] if few else [each]))
    return next((each for each in examples if chance_of(each) != chance_of(batch)), None)


def _read(script: Script, output: Any) -> list[torch.Tensor]:
    return [value.detach() for _, value in script.outputs.of(output)]


def _alike(mine: list[torch.Tensor], others: dict[int, list[torch.Tensor]] | None, same: Any) -> bool:
    """Whether every second run, from the first on, gave what ``mine`` is."""
    if others is None:
        return False
    ours = [others[index] for index in sorted(others)[::2]]
    return all(len(mine) == len(each) and all(map(same, mine, each)) for each in ours)


def _rounding(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    allowed = _ROUNDING.get(one.dtype, _COARSE) if one.device.type == "cpu" else _COARSE
    return torch.equal(one, other) or float(_gap(one, other).abs().max()) <= allowed * float(_gap(one, torch.zeros_like(one)).abs().max())


def _steady(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return float(_gap(one, other).square().sum()) <= _OTHER * float(_gap(one, torch.zeros_like(one)).square().sum())


def _gap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The difference; infinite where only one of the two is a number."""
    one, other = (torch.view_as_real(value) if value.is_complex() else value for value in (one, other))
    one, other = one.double(), other.double()
    if finite(one) and finite(other):
        return one - other
    same = (one == other) | (one.isnan() & other.isnan()) | (one.isinf() & (other == 0))
    return torch.where(same, 0.0, (one - other).nan_to_num(nan=torch.inf))


class _Trial:
    def __init__(self, model: Model, script: Script, stops: Sequence[str]):
        self.model, self.script, self.stops = model, script, stops
        self.raised: Exception | None = None
        self.where = ""

    def beside(self, batches: Sequence[Batch], *, in_turn: bool = False) -> dict[int, list[torch.Tensor]] | None:
        """Outputs by the batch's number, of forwards that stop at every unit; None where one raises."""
        blocks = () if in_turn else self.model.blocks
        seeds, self.raised, self.where = [chance_of(batch) for batch in batches], None, "at its beginning"
        self.chain = Chain(self.model.module, batches, self.stops, blocks, self.script.carried, seeds=seeds, in_turn=in_turn)
        self.done: set[Stop] = set()
        self.loading = Loading(self.model)
        names = self.model.weights.names if in_turn else self.model.trunk
        self.model.weights.load(names)
        try:
            with torch.inference_mode(False), torch.no_grad():
                passes = (lambda stop: stop in self.done) if in_turn else lambda stop: False
                return {index: _read(self.script, output) for index, output in self.chain.run(self._work, passes)}
        except (MemoryError, ModelError):
            raise
        except Exception as error:  # what a forward raises that met another's state
            self.raised = error
            return None
        finally:
            self.loading.end()
            self.model.weights.release(names)

    def _work(self, stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        self.where = f"after {stop.name}" if stop.kind == "leave" else f"in {stop.name}"
        if stop.kind != "unit":
            yield from self.loading.at(stop, arrivals)
        else:
            self.done.add(stop)
            for index, arrival in arrivals:
                output = arrival.run(self.chain.original(stop.name))
                self.where = f"after {stop.name}"
                yield index, output
