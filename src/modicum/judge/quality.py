"""Quality against the original: KL per token, paired by sequence, with a bootstrap interval; perplexity where there are labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from modicum.core.errors import DataError, ModelError
from modicum.core.finite import finite
from modicum.data.forward import own_errors
from modicum.data.splits import Batch, call, chance_of, count_rows
from modicum.forms import Form
from modicum.models.model import Model
from modicum.numerics.interval import interval
from modicum.numerics.threads import total
from modicum.sweep import Script, Sweep
from modicum.sweep.modes import seeded, uncut
from modicum.sweep.outputs import CLASSES, INDEPENDENT, VALUES, Outputs, Part
from modicum.sweep.spill import SpillPool

# Nats per token beyond which a perplexity is no number any more; it is told as that of so many, and so is the divergence of what ruins a model.
RUINED = 700.0
# Tokens whose distributions are compared at a time.
_TOKENS = 128
# What Transformers calls a label that no loss counts.
_IGNORED = -100
Run = Iterator[tuple[int, Any]]
"""Numbers of batches with the model's outputs, as they finish."""


class RuinedError(ModelError):
    """Outputs that hold NaN or Inf."""


_METRICS = {CLASSES: "mean KL per token", INDEPENDENT: "mean KL per token of independent labels", VALUES: "relative squared error"}


@dataclass
class Judged:
    """How one part of the output differs, per sequence, in the unit of its metric."""

    part: Part
    divergence: list[float] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """What the numbers are."""
        return _METRICS[self.part.kind]

    @property
    def mean(self) -> float:
        """Mean over sequences."""
        return float(np.mean(self.divergence)) if self.divergence else 0.0


@dataclass
class Quality:
    """Per sequence: mean KL(original ‖ candidate) per token in nats, or the relative squared error of outputs without logits, and
    negative log-likelihoods per token where tokens predict the next.

    Of several outputs each is judged by itself. Logits that come first stand for all, and which output differs most is said; of values each row's
    is that of the output that differs most there. Where an output has no axis for the rows of its batch, the batch is one sequence.
    Padding counts nowhere. ``counts``: sequences of each batch, by its number.
    """

    parts: dict[str, Judged] = field(default_factory=dict)
    original: list[float] = field(default_factory=list)
    candidate: list[float] = field(default_factory=list)
    tokens: int = 0
    counts: dict[int, int] = field(default_factory=dict)

    @property
    def worst(self) -> Judged:
        """The output that differs most. Raises ``DataError`` where padding left nothing to judge."""
        if not any(judged.divergence for judged in self.parts.values()):
            raise DataError("data: at least one token that is no padding is needed, none came. Check the masks.")
        return max(self.parts.values(), key=lambda judged: judged.mean)

    @property
    def main(self) -> Judged:
        """The first output. Raises ``DataError`` where padding left nothing to judge."""
        return next(iter(self.parts.values())) if self.worst else Judged(Part((), VALUES))

    @property
    def metric(self) -> str:
        """That of the first output."""
        return self.main.metric

    @property
    def divergence(self) -> list[float]:
        """What stands for all outputs, per sequence."""
        alike = [judged.divergence for judged in self.parts.values() if len(judged.divergence) == len(self.main.divergence)]
        return self.main.divergence if self.main.part.kind != VALUES else [max(values) for values in zip(*alike)]

    def by_row(self, batches: Sequence[Batch]) -> list[float]:
        """One divergence for each row of ``batches``; the rows of a batch that was judged as one share its mean."""
        values, found, low = self.divergence, dict[int, list[float]](), 0
        for index, count in self.counts.items():
            mine, rows = values[low : low + count], count_rows(batches[index])
            found[index] = mine if count == rows else [float(np.mean(mine or values))] * rows
            low += count
        return [value for index in sorted(found) for value in found[index]]

    def summary(self, seed: int = 0) -> dict[str, Any]:
        """Mean divergence with a bootstrap 95 % interval over sequences, what ``each`` lost, that of each output, and perplexities."""
        mean, low, high = interval(self.divergence, seed)
        found = {"metric": self.metric, "mean": mean, "low": low, "high": high, "sequences": len(self.divergence), "tokens": self.tokens}
        found |= {
            "each": self.divergence,
            "worst output": self.worst.part.name,
            "outputs": [_row(judged) for judged in self.parts.values()],
        }
        if self.candidate:
            found |= {"perplexity": _perplexity(self.candidate)}
            if self.original:
                found |= {"perplexity_original": _perplexity(self.original)}
        return found

    def events(self) -> list[str]:
        """What a reader must know of several outputs: where another than the first differs most."""
        if self.worst is self.main or len(self.parts) == 1:
            return []
        said = [f"{judged.part.name} by {judged.mean:.2g} ({judged.metric})" for judged in (self.worst, self.main)]
        return [f"outputs: of {len(self.parts)} outputs {said[0]} differs most, {said[1]} is the first."]


def _row(judged: Judged) -> dict[str, Any]:
    return {"name": judged.part.name, "judged": str(judged.part), "metric": judged.metric, "mean": judged.mean}


def _perplexity(losses: Sequence[float]) -> float:
    return math.exp(min(float(np.mean(losses)), RUINED))


def compare(
    original: Run, candidate: Run, batches: Sequence[Batch], causal: bool, outputs: Outputs | None = None
) -> Quality:  # fmt: skip
    """Compare two runs over the same batches, batch by batch as their outputs appear, by what ``outputs`` says is judged.

    Raises ``RuinedError`` where the candidate has NaN, ``ModelError`` where the original has.
    """
    quality, judged = Quality(), outputs or Outputs()
    waiting: dict[int, Any] = {}
    for index, output in original:
        waiting[index] = output
        while index in waiting:
            try:
                other, theirs = next(candidate)
            except StopIteration:
                break
            if other not in waiting:
                raise ModelError("outputs: both runs must finish their batches in one order. Report this.")
            _add(quality, judged, (waiting.pop(other), theirs), batches[other], other, causal)
    for _ in candidate:  # a sweep gives its model back only at its end
        raise ModelError("outputs: both runs must finish their batches in one order. Report this.")
    return quality


@torch.no_grad()
def _add(quality: Quality, outputs: Outputs, pair: tuple[Any, Any], batch: Batch, index: int, causal: bool) -> None:
    sides = [[(part, value.detach()) for part, value in outputs.of(output)] for output in pair]
    for place, ((part, left), (_, right)) in enumerate(zip(*sides)):
        real, right = part.real(batch, left), right.to(left.device)
        if left.shape != right.shape:
            raise ModelError(
                f"output {part.name}: must keep its shape {tuple(left.shape)}, has {tuple(right.shape)}; what depends on values for its shape cannot "
                "be compared. Name others with --output, or give its original."
            )
        _require_finite(part, left, right, real)
        judged = quality.parts.setdefault(part.name, Judged(part))
        if not has_rows(batch, left, part):
            left, right, real = left[None], right[None], None if real is None else real[None]
            labels = None
        else:
            labels = batch.get("input_ids") if causal and place == 0 and part.kind == CLASSES and isinstance(batch, dict) else None
            # Where a picture's tokens stand before the text's, logits are not those of its tokens one by one.
            labels = labels if labels is None or labels.shape == left.shape[:-1] else None
        found = (
            _values(left, right, real) if part.kind == VALUES else _logits(quality, part, (left, right), real, batch, labels, place == 0)
        )
        judged.divergence += [value for value, _ in found]
        if place == 0:
            quality.tokens += sum(tokens for _, tokens in found)
            quality.counts[index] = len(found)


def has_rows(batch: Batch, output: torch.Tensor, part: Part) -> bool:
    """Whether an output's first axis is that of its batch's rows: every tensor of the batch has it, or its texts do."""
    lengths = {len(value) if value.ndim else None for value in (batch.values() if isinstance(batch, Mapping) else batch)}
    if output.ndim < (1 if part.kind == VALUES else 2):
        return False
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return lengths == {len(output)} or (ids is not None and ids.ndim > 0 and len(ids) == len(output))


def _require_finite(part: Part, left: torch.Tensor, right: torch.Tensor, real: torch.Tensor | None) -> None:
    """Both must hold numbers, but for padding and what is minus infinity in both (a vocabulary that is masked by design)."""
    if finite(left) and finite(right):
        return
    left, right = (value if real is None else value[real] for value in (left, right))
    masked = left.isneginf()
    if not bool((torch.isfinite(left) | masked).all()):
        raise ModelError(f"the original's output ({part.name}): must hold numbers, holds NaN or Inf. Check its weights and the data.")
    if not bool((torch.isfinite(right) | masked & right.isneginf()).all()):
        raise RuinedError("the compressed model's outputs: must be finite, hold NaN or Inf. Choose a larger budget or another method.")


def _values(left: torch.Tensor, right: torch.Tensor, real: torch.Tensor | None) -> list[tuple[float, int]]:
    """Relative squared error of each row, and the tokens it has, one where nothing says so.

    Rows of one number each, such as scores, are held against the mean square of all of them: one alone may be next to nothing.
    """
    found = []
    lone = total(left.double().square()) / max(1, left.numel()) if left[0].numel() == 1 else None
    for row in range(len(left)):
        a, b = ((value[row] if real is None else value[row][real[row]]).double() for value in (left, right))
        if a.numel() or real is None:
            same = a == b  # what is masked by infinities in both too
            error, square = torch.where(same, 0.0, a - b).square(), torch.where(a.isinf(), 0.0, a).square()
            scale = total(square) if lone is None else lone
            found.append((total(error) / max(scale, 1e-30), 1 if real is None else int(real[row].sum())))
    return found


def _logits(
    quality: Quality, part: Part, pair: tuple[torch.Tensor, torch.Tensor], real: torch.Tensor | None, batch: Batch,
    labels: torch.Tensor | None, main: bool,
) -> list[tuple[float, int]]:  # fmt: skip
    """Mean divergence over each row's positions, and how many they are; of a causal main output likelihoods are added too."""
    found = []
    for row in range(len(pair[0])):
        following = None if labels is None else labels[row]
        each, losses = _by_token(pair[0][row], pair[1][row], following, part.kind)
        mask = torch.ones_like(each, dtype=torch.bool) if real is None else real[row].reshape(-1)
        if not bool(mask.any()):
            continue
        found.append((float(each[mask].mean().clamp_min(0)), int(mask.sum())))
        wanted = None if losses is None else _predicted(batch, row, mask)
        if losses is not None and wanted is not None and bool(wanted.any()):
            kept = losses[:, wanted].mean(1)
            quality.original.append(float(kept[0]))
            quality.candidate.append(float(kept[1]))
    return found


def _predicted(batch: Batch, row: int, mask: torch.Tensor) -> torch.Tensor:
    """Tokens after the first that are predicted from a token that is no padding, are none themselves, and are no label to be ignored."""
    wanted = mask[1:] & mask[:-1]
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if labels is not None and labels.ndim == 2 and labels.shape[1] == len(mask):
        wanted = wanted & (labels[row, 1:] != _IGNORED).to(mask.device)
    return wanted


def _by_token(
    original: torch.Tensor, candidate: torch.Tensor, labels: torch.Tensor | None, kind: str = CLASSES
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """KL of every token (tokens,) of one sequence's logits; and both negative log-likelihoods (2, tokens - 1) of the next where labels are.

    A few tokens at a time: a vocabulary is wide.
    """
    divergences, losses = [], []
    flat = [logits.reshape(-1, logits.shape[-1]) for logits in (original, candidate)]
    following = None if labels is None else labels[1:].to(original.device)
    for low in range(0, len(flat[0]), _TOKENS):
        here = [logits[low : low + _TOKENS].float() for logits in flat]
        if kind == INDEPENDENT:
            divergences.append(_bernoulli(*here))
            continue
        p, q = (logits.log_softmax(-1) for logits in here)
        each = p.exp() * (p - q)
        divergences.append((each if finite(here[0]) else each.masked_fill(here[0].isneginf(), 0.0)).sum(-1))
        if following is not None:
            chosen = following[low : low + _TOKENS, None]
            losses.append(torch.stack([-log[: len(chosen)].gather(-1, chosen)[:, 0] for log in (p, q)]))
    return torch.cat(divergences), torch.cat(losses, 1) if losses else None


def _bernoulli(original: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """KL of independent labels (tokens, labels), summed over them."""
    yes, no = (
        original.mul(sign).sigmoid() * (F.logsigmoid(sign * original) - F.logsigmoid(sign * candidate)) for sign in (1, -1)
    )  # fmt: skip
    return torch.where(original == candidate, 0.0, yes + no).sum(-1)


@torch.no_grad()
def plain(module: torch.nn.Module, batches: Iterable[Batch]) -> Run:
    """Outputs of a module in memory; what it draws by chance depends on the batch alone."""
    for index, batch in enumerate(batches):
        with uncut(module, restored=False), own_errors(module, batch), seeded(chance_of(batch)):
            output = call(module, batch)
        yield index, output


def streamed(
    model: Model,
    batches: Sequence[Batch],
    script: Script,
    forms: Mapping[str, Form] | None = None,
    *,
    biases: Mapping[str, torch.Tensor] | None = None,
    dropped: frozenset[str] = frozenset(),
    pool: SpillPool | None = None,
    on_block: Callable[[str, dict[int, Any]], None] | None = None,
) -> Run:
    """Outputs of an opened model, one block in memory at a time, with ``forms`` for its weights; ``on_block`` sees what each block gave."""
    return Sweep(model, batches, script, values=forms, biases=biases, dropped=dropped, pool=pool, on_block=on_block).run()


def perplexity_text(summary: Mapping[str, Any]) -> str:
    """One line for people."""
    line = f"{summary['metric']} {summary['mean']:.5f} [{summary['low']:.5f}, {summary['high']:.5f}]"
    if "perplexity_original" in summary:
        line += f", perplexity {summary['perplexity_original']:.3f} → {summary['perplexity']:.3f}"
    return line


def require(batches: Sequence[Batch]) -> None:
    """Raise ``DataError`` where there is nothing to judge with."""
    if not batches:
        raise DataError("data: at least one test sequence is needed, none came. Give more data.")
