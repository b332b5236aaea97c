"""What an option costs in quality: the error it makes, weighed by how much the model's output feels it, in several currencies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from modicum.core.blocks import Blocks
from modicum.core.unit import Stats, Unit
from modicum.forms import Form
from modicum.numerics.threads import total
from modicum.sweep import Sensitivity

# Inputs that are rounded at a time.
_TOKENS = 1 << 12

# A unit's harm from its weight error (rows, columns), what was measured of its inputs and gradients, and its weight; None: not known.
Harm = Callable[[Unit, torch.Tensor, Stats, Sensitivity | None, torch.Tensor], float | None]


def fisher(unit: Unit, error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None, weight: torch.Tensor) -> float | None:
    """Predicted KL in nats per draw, from the squared error and the squared gradient of each output row.

    ``½ Σ_r E[g_r²] E[δ_r²]`` with the gradient g and the error δ of the unit's outputs: exact to second order where neither the errors of two
    rows nor those of two positions go together. Of a weight that no product stands for, ``½ Σ F_ij E_ij²`` with the information F of each of its
    weights; where its inputs are known, a row's information ``Σ_j F_ij`` weighs its output error instead, relative to its inputs' energy: the same
    in the mean over white errors. For an embedding, entries count by how often they were looked up.

    *Shapes*: ``error`` and ``weight`` (rows, columns).

    *Needs and cost*: ``sensitivity``, and inputs; rows · columns² operations with the inputs' covariance, rows · columns without. None
    where the unit's inputs or gradients were not seen.
    """
    found = None if sensitivity is None else rows(unit, error, stats, sensitivity)
    return None if found is None else total(found)


def covariance(unit: Unit, error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None, weight: torch.Tensor) -> float | None:
    """Predicted KL in nats per draw, with the gradients' full covariance: errors of several rows may cancel or add up.

    ``½ tr(G E H Eᵀ)`` with the gradients' covariance G, the inputs' mean second moment H and the weight error E. It is the second-order KL where
    a position's gradient and input are independent. A low-rank or a rotated error moves rows together; the diagonal cannot see that: the
    KL of the demo's weights without the smallest tenth of their singular values is overestimated 2.0 times by ``fisher``, and met within 2 %
    by this, in the geometric mean over 22 units.

    *Shapes*: ``error`` and ``weight`` (rows, columns), G (rows, rows), H (columns, columns).

    *Needs and cost*: ``sensitivity.covariance``, and inputs; rows² · columns operations more than ``fisher``. Where G was not
    collected (too many rows) the diagonal is taken, and an event of ``stats`` says so.

    *Reduces to* ``fisher`` where G is diagonal.
    """
    if sensitivity is None:
        return None
    felt = sensitivity.covariance
    if sensitivity.weight is not None:
        return fisher(unit, error, stats, sensitivity, weight)
    if felt is None:
        stats.events.append("no covariance of output gradients was collected: its harm takes their diagonal")
        return fisher(unit, error, stats, sensitivity, weight)
    moved = _moved(unit, error, stats, sensitivity)
    if moved is None or (looked_up_alone(unit) and len(felt) != unit.shape[1]):
        return None
    weighed = error @ felt if looked_up_alone(unit) else felt @ error
    return max(0.0, 0.5 * total(weighed.mul_(moved)))


def relative(unit: Unit, error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None, weight: torch.Tensor) -> float | None:
    """Squared error of the unit's outputs as a share of the outputs' square: what no gradient is needed for, and is not in nats.

    *Shapes*: ``error`` and ``weight`` (rows, columns).

    *Needs and cost*: inputs; twice rows · columns² operations. None where they were not seen.
    """
    lost, whole = (_energy(unit, value, stats, sensitivity) for value in (error, weight))
    return None if lost is None or whole is None else total(lost) / max(total(whole), 1e-30)


def trace(unit: Unit, error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None, weight: torch.Tensor) -> float | None:
    """Predicted KL in nats per draw, from the Fisher information per weight and the squared weight error.

    ``½ tr(F) / weights · ‖E‖²``: every weight of the unit counts the same. It is the expectation over errors that are independent of each other
    and of the inputs, and knows nothing of columns that matter more (for an embedding, of entries met more often).

    *Shapes*: ``error`` and ``weight`` (rows, columns).

    *Needs and cost*: ``sensitivity.trace``; rows · columns operations. None where it was not collected.

    *Reduces to* ``fisher`` in the mean over white errors, where gradient and input are independent.

    *Differences from the paper*: HAWQ-V2 takes the Hessian's trace; the Fisher information needs no second derivative and no model in
    memory. ``hessian`` takes the former.
    """
    return _averaged(unit, error, None if sensitivity is None else sensitivity.trace)


def hessian(unit: Unit, error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None, weight: torch.Tensor) -> float | None:
    """Predicted KL in nats per draw, from the average Hessian eigenvalue and the squared weight error.

    ``½ tr(∇²) / weights · ‖E‖²``, HAWQ-V2's currency, with the trace that `sweep.curvature.hutchinson` estimates. A random estimate may come out
    negative; then an event of ``stats`` asks for more probes, and the harm is not known.

    *Shapes*: ``error`` and ``weight`` (rows, columns).

    *Needs and cost*: ``sensitivity.hessian``; rows · columns operations. None where it was not collected.

    *Reduces to* ``trace`` where each draw depends on one position of the unit.

    *Differences from the paper*: half the sum, so that it is in nats, and the Hessian of the divergence from the original model.
    """
    found = None if sensitivity is None else sensitivity.hessian
    if found is not None and found < 0:
        stats.events.append(f"the estimate of its Hessian's trace is negative ({found:.2g}): more probes or tokens are needed")
        return None
    return _averaged(unit, error, found)


HARMS: dict[str, Harm] = {"fisher": fisher, "covariance": covariance, "error": relative, "trace": trace, "hessian": hessian}


def of_inputs(
    harm: str, unit: Unit, form: Form, stats: Stats, sensitivity: Sensitivity | None, weight: torch.Tensor
) -> tuple[float | None, torch.Tensor | None]:  # fmt: skip
    """What a form that rounds its inputs loses by that, in the currency ``harm``, and by row as ``rows`` tells it; nothing where it does not.

    Errors of rounding hardly depend on each other, on the inputs or on the weight's error. So an input that is off by a share ρ of its root mean
    square does what ρ times its column of the weight would do as an error, under inputs that do not go together.

    *Shapes*: ``weight`` (rows, columns), ρ (columns,).
    """
    if form.rounding is None or stats.inputs is None or stats.count == 0:
        return 0.0, None
    share, square = _shares(form.rounding, stats)
    apart = Stats(count=stats.count, square=square, events=stats.events)
    error = form.dense().float() * share
    found = HARMS[harm](unit, error, apart, sensitivity, weight)
    if harm == "error" and found is not None:
        whole, alone = (_energy(unit, weight, each, sensitivity) for each in (stats, apart))
        found *= 1.0 if whole is None or alone is None else total(alone) / max(total(whole), 1e-30)
    return found, rows(unit, error, apart, sensitivity)


def _shares(rounding: Callable[[torch.Tensor], torch.Tensor], stats: Stats) -> tuple[torch.Tensor, torch.Tensor]:
    """Root mean squared error of each rounded input as a share of its root mean square (columns,), and the inputs' summed squares (columns,).

    Found once for all options that round the inputs of a stage alike.
    """
    key = ("rounded", str(rounding))
    if key not in stats.cache:
        assert stats.inputs is not None
        columns = stats.inputs[0].shape[-1]
        lost, square = torch.zeros(columns), torch.zeros(columns)
        for whole in stats.inputs:
            for taken in whole.split(_TOKENS):
                lost += (taken.float() - rounding(taken).float()).square().sum(0)
                square += taken.float().square().sum(0)
        stats.cache[key] = (lost / square.clamp_min(1e-30)).sqrt(), square
    return stats.cache[key]


def harm(unit: Unit, error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None, weight: torch.Tensor) -> float | None:
    """``fisher`` with a sensitivity, ``relative`` without."""
    return relative(unit, error, stats, None, weight) if sensitivity is None else fisher(unit, error, stats, sensitivity, weight)


def rows(unit: Unit, error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None) -> torch.Tensor | None:
    """What each row of a weight error adds to the ``fisher`` harm (rows,); None where the unit's inputs were not seen.

    Shares of a harm that go with some rows are read off it, such as those that a cut leaves. Without ``sensitivity`` the mean squared
    output error of each row, which adds up to the numerator of ``relative``.
    """
    if sensitivity is None:
        return _energy(unit, error, stats, None)
    if sensitivity.weight is not None:
        return _through_weights(error, stats, sensitivity.weight)
    if not looked_up_alone(unit):
        squares = output_error(error, stats, sensitivity)
        return None if squares is None else squares * sensitivity.gradient * 0.5
    if sensitivity.gradient.shape != error.shape[1:]:
        return None
    return _share(stats, len(error)) * (error.square() @ sensitivity.gradient) * 0.5


def _through_weights(error: torch.Tensor, stats: Stats, information: torch.Tensor) -> torch.Tensor:
    """Harm of each row (rows,), by the information of each weight; where inputs were seen, a row's is theirs to share out, for errors may cancel."""
    squares = output_error(error, stats, None)
    if squares is None:
        return (error.square() * information).sum(1) * 0.5
    energy = _moment(stats, None).energy  # type: ignore[union-attr]
    return squares * information.sum(1) * (0.5 / energy.clamp_min(1e-30))


def output_error(error: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None) -> torch.Tensor | None:
    """Mean squared output error per row (rows,) of weight error (rows, columns), or None where nothing is known of the inputs."""
    found = _moment(stats, sensitivity)
    if found is None:
        return None
    return _seen(error, stats, found)[1]


def _seen(error: torch.Tensor, stats: Stats, moment: Moment) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight error times the inputs' mean second moment (rows, columns), and mean squared output error per row (rows,).

    Of one error they are asked for several times, so ``stats`` keep those of the last.
    """
    known, moved, squares = stats.cache.get("output error", (None, None, None))
    if known is not error:
        moved = moment.after(error)
        squares = (moved * error).sum(1)
        stats.cache["output error"] = (error, moved, squares)
    return moved, squares


@dataclass(frozen=True)
class Moment:
    """Second moment of ``count`` inputs as it was summed: (columns, columns), whole or in blocks, or its diagonal (columns,); and what each column
    has in every direction beside it.

    Inputs that were fewer than their columns take none of some directions. What fits the few exactly is not free, so others count as lying in all
    directions alike.
    """

    summed: torch.Tensor | Blocks
    count: int
    beside: float = 0.0

    @classmethod
    def of(cls, summed: torch.Tensor | Blocks, count: int) -> Moment:
        """That of ``count`` inputs."""
        if isinstance(summed, Blocks) or summed.ndim == 1 or count >= len(summed):
            return cls(summed, count)
        return cls(summed, count, (1 - count / len(summed)) * float(summed.diagonal().mean()))

    def after(self, error: torch.Tensor) -> torch.Tensor:
        """A weight error (rows, columns) times the mean second moment; a tensor of its own."""
        moved = error * self.summed if isinstance(self.summed, torch.Tensor) and self.summed.ndim == 1 else error @ self.summed
        return (moved.add_(error, alpha=self.beside) if self.beside else moved).div_(self.count)

    @property
    def energy(self) -> torch.Tensor:
        """Mean square of an input, over all its columns."""
        squares = self.summed if isinstance(self.summed, torch.Tensor) and self.summed.ndim == 1 else self.summed.diagonal()
        return (squares.sum() + len(squares) * self.beside) / self.count


def _moment(stats: Stats, sensitivity: Sensitivity | None) -> Moment | None:
    if stats.moment is not None and stats.count:
        return Moment.of(stats.moment, stats.count)
    if stats.square is not None and stats.count:
        return Moment(stats.square, stats.count)
    return None if sensitivity is None or sensitivity.square is None else Moment(sensitivity.square, 1)


def second_moment(stats: Stats) -> Moment | None:
    """Second moment of the inputs, whole or in blocks; None where it was not measured."""
    found = _moment(stats, None)
    return None if found is None or (isinstance(found.summed, torch.Tensor) and found.summed.ndim == 1) else found


def _moved(unit: Unit, error: torch.Tensor, stats: Stats, sensitivity: Sensitivity) -> torch.Tensor | None:
    """Weight error times the inputs' mean second moment (rows, columns); an embedding's inputs are ones and zeros."""
    if looked_up_alone(unit):
        return error * _share(stats, len(error))[:, None]
    found = _moment(stats, sensitivity)
    return None if found is None else _seen(error, stats, found)[0]


def _energy(unit: Unit, value: torch.Tensor, stats: Stats, sensitivity: Sensitivity | None) -> torch.Tensor | None:
    """Mean squared output per row (rows,) of a weight or weight error; for an embedding, of each entry by its share."""
    return _share(stats, len(value)) * value.square().sum(1) if looked_up_alone(unit) else output_error(value, stats, sensitivity)


def _averaged(unit: Unit, error: torch.Tensor, curvature: float | None) -> float | None:
    return None if curvature is None else 0.5 * curvature / unit.size * total(error.square())


def looked_up_alone(unit: Unit) -> bool:
    """Whether a unit is a table whose entries are looked up and do nothing else."""
    return unit.kind == "embedding" and not unit.aliases


def _share(stats: Stats, entries: int) -> torch.Tensor:
    """Share of look-ups of each entry (entries,). Entries not met in calibration will be met later: each counts as if met once more."""
    frequency = stats.frequency if stats.frequency is not None else torch.ones(entries)
    share = frequency / frequency.sum().clamp_min(1)
    return (share * frequency.sum() + 1.0) / (frequency.sum() + len(frequency))
