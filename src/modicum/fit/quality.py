"""Quality against the original: KL per token, paired by sequence, with a bootstrap interval; perplexity where there are labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from modicum.core.errors import DataError, ModelError
from modicum.core.finite import finite
from modicum.data.forward import own_errors
from modicum.data.splits import Batch, call
from modicum.forms import Form
from modicum.models.model import Model
from modicum.numerics.threads import total
from modicum.sweep import Script, Sweep
from modicum.sweep.modes import uncut
from modicum.sweep.outputs import Part, parts
from modicum.sweep.spill import SpillPool

_RESAMPLES = 2000
# Nats per token beyond which a perplexity is no number any more; it is told as that of so many, and so is the divergence of what ruins a model.
RUINED = 700.0
# Tokens whose distributions are compared at a time.
_TOKENS = 128
Outputs = Iterator[tuple[int, Any]]


class RuinedError(ModelError):
    """Outputs that hold NaN or Inf."""


@dataclass
class Quality:
    """Per sequence: mean KL(original ‖ candidate) per token in nats, or the relative squared error of outputs without logits, and
    negative log-likelihoods per token where tokens predict the next. Of several outputs ``parts`` holds each one's own; of several without
    classes the divergence is that of the worst.
    """

    metric: str = "mean KL per token"
    divergence: list[float] = field(default_factory=list)
    original: list[float] = field(default_factory=list)
    candidate: list[float] = field(default_factory=list)
    tokens: int = 0
    parts: dict[str, list[float]] = field(default_factory=dict)

    def summary(self, seed: int = 0) -> dict[str, Any]:
        """Mean divergence with a bootstrap 95 % interval over sequences, and perplexities."""
        mean, low, high = interval(self.divergence, seed)
        found: dict[str, Any] = {
            "metric": self.metric,
            "mean": mean,
            "low": low,
            "high": high,
            "sequences": len(self.divergence),
            "tokens": self.tokens,
        }
        if self.parts:
            each = {name: float(np.mean(values)) for name, values in self.parts.items()}
            found |= {"outputs": each, "worst output": max(each, key=each.__getitem__)}
        if self.candidate:
            found |= {"perplexity": _perplexity(self.candidate)}
            if self.original:
                found |= {"perplexity_original": _perplexity(self.original)}
        return found


def _perplexity(losses: Sequence[float]) -> float:
    return math.exp(min(float(np.mean(losses)), RUINED))


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Mean and the bootstrap 95 % interval of it over ``values``."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(array), (_RESAMPLES, len(array)))
    low, high = np.quantile(array[draws].mean(1), [0.025, 0.975])
    return float(array.mean()), float(low), float(high)


def compare(original: Outputs, candidate: Outputs, batches: Sequence[Batch], causal: bool) -> Quality:
    """Compare two runs over the same batches, batch by batch as their outputs appear. Raises ``RuinedError`` for NaN."""
    quality = Quality()
    waiting: dict[int, Any] = {}
    for index, output in original:
        waiting[index] = output
        while index in waiting:
            try:
                other, theirs = next(candidate)
            except StopIteration:
                break
            if other not in waiting:
                raise ModelError("quality: both runs must finish their batches in one order. Report this.")
            _add(quality, waiting.pop(other), theirs, batches[other], causal)
    for _ in candidate:  # a sweep gives its model back only at its end
        raise ModelError("quality: both runs must finish their batches in one order. Report this.")
    return quality


def _add(quality: Quality, original: Any, candidate: Any, batch: Batch, causal: bool) -> None:
    theirs, ours = parts(original), {part.name: part for part in parts(candidate)}
    for part in theirs:
        if part.name not in ours or ours[part.name].value.shape != part.value.shape:
            raise ModelError(f"quality: output {part.name!r} must have the original's shape {tuple(part.value.shape)}, has not.")
        _require_numbers(part.value, ours[part.name].value.to(part.value.device))
    first = theirs[0]
    found = [_add_scores(quality, first, ours[first.name], batch, causal) if first.classes else _errors(first, ours[first.name])]
    found += [_errors(part, ours[part.name]) for part in theirs[1:]]
    if not first.classes:
        quality.metric = "relative squared error"
        quality.divergence += map(max, zip(*found))
        quality.tokens += len(first.value)
    for part, values in zip(theirs, found if len(found) > 1 else []):
        quality.parts.setdefault(part.name, []).extend(values)


def _require_numbers(original: torch.Tensor, candidate: torch.Tensor) -> None:
    """Raise where outputs are no numbers; minus infinity stands where the original has it too, as for tokens that are ruled out."""
    if finite(candidate):
        return
    if bool(original.isnan().any()):
        raise ModelError("quality: the original's outputs must be numbers, hold NaN on this data. Check the model and the data.")
    if not bool((candidate.isfinite() | (candidate == original)).all()):
        raise RuinedError(
            "quality: the compressed model's outputs must be finite, hold NaN or Inf. Choose a larger budget or another method."
        )


def _errors(original: Part, candidate: Part) -> list[float]:
    """Relative squared error of each row; where the original is infinite, the candidate is too, and nothing is counted."""
    found = []
    for one, other in zip(original.value, candidate.value.to(original.value.device)):
        a, b = (value.double().masked_fill(~one.isfinite(), 0) for value in (one, other))
        found.append(total((a - b).square()) / max(total(a.square()), 1e-30))
    return found


def _add_scores(quality: Quality, original: Part, candidate: Part, batch: Batch, causal: bool) -> list[float]:
    """Add the divergence of every row's scores; what was added."""
    left, right, found = original.value, candidate.value.to(original.value.device), []
    for row in range(len(left)):
        labels = batch["input_ids"][row] if causal and isinstance(batch, dict) and "input_ids" in batch else None
        each, losses = _by_token(left[row], right[row], labels)
        mask = _mask(batch, row, each)
        found.append(float(each[mask].mean().clamp_min(0)))
        quality.tokens += int(mask.sum())
        if losses is not None:
            kept = losses[:, mask[1:]].mean(1)
            quality.original.append(float(kept[0]))
            quality.candidate.append(float(kept[1]))
    quality.divergence += found
    return found


def _by_token(original: torch.Tensor, candidate: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """KL of every token (tokens,) of one sequence's logits; and both negative log-likelihoods (2, tokens - 1) of the next where labels are.

    A few tokens at a time: a vocabulary is wide.
    """
    divergences, losses = [], []
    flat = [logits.reshape(-1, logits.shape[-1]) for logits in (original, candidate)]
    following = None if labels is None else labels[1:].to(original.device)
    for low in range(0, len(flat[0]), _TOKENS):
        p, q = (logits[low : low + _TOKENS].float().log_softmax(-1) for logits in flat)
        divergences.append(torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum(-1))
        if following is not None:
            chosen = following[low : low + _TOKENS, None]
            losses.append(torch.stack([-log[: len(chosen)].gather(-1, chosen)[:, 0] for log in (p, q)]))
    return torch.cat(divergences), torch.cat(losses, 1) if losses else None


def _mask(batch: Batch, row: int, each: torch.Tensor) -> torch.Tensor:
    mask = batch.get("attention_mask") if isinstance(batch, dict) else None
    if mask is not None and mask.ndim == 2 and mask.shape[1] == len(each):
        return mask[row].bool().to(each.device)
    return torch.ones(len(each), dtype=torch.bool, device=each.device)


@torch.no_grad()
def plain(module: torch.nn.Module, batches: Iterable[Batch]) -> Outputs:
    """Outputs of a module in memory."""
    for index, batch in enumerate(batches):
        with uncut(module, restored=False), own_errors(module, batch):
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
) -> Outputs:
    """Outputs of an opened model, one block in memory at a time, with ``forms`` in place of its weights."""
    return Sweep(model, batches, script, values=forms, biases=biases, dropped=dropped, pool=pool).run()


def perplexity_text(summary: Mapping[str, Any]) -> str:
    """One line for people."""
    line = f"{summary['metric']} {summary['mean']:.5f} [{summary['low']:.5f}, {summary['high']:.5f}]"
    if "perplexity_original" in summary:
        line += f", perplexity {summary['perplexity_original']:.3f} → {summary['perplexity']:.3f}"
    return line


def require(batches: Sequence[Batch]) -> None:
    """Raise ``DataError`` where there is nothing to judge with."""
    if not batches:
        raise DataError("quality: at least one test sequence is needed, none came. Give more data.")
