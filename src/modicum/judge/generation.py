"""Whether a model still writes as its original does.

Over long continuations errors feed on themselves, which divergence on given text does not show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError, quoted
from modicum.data.splits import Batch
from modicum.models.model import Model
from modicum.models.quiet import hushed
from modicum.numerics.interval import interval
from modicum.sweep.modes import seeded

# Bits per treated weight, scales and all, up to which it is checked: three bits with scales for every 32 columns.
FEW_BITS = 3.5
# Continuations, the tokens that each goes on from, and how many tokens it has.
_PROMPTS, _LEAD, _LONG = 16, 32, 96
# Tokens in a row that count as repeated.
_RUN = 4


@dataclass(frozen=True)
class Written:
    """What a model does in each continuation.

    Shares: of its own four tokens in a row, decoded greedily, those that stood there before; of the tokens that the original drew, those
    that are its first choice after all that stands before them.
    """

    repeated: list[float]
    agreed: list[float]

    def summary(self, seed: int) -> dict[str, dict[str, float]]:
        """Means with their bootstrap 95 % intervals over continuations."""
        told = lambda values: dict(zip(("mean", "low", "high"), interval(values, seed)))
        return {name: told(values) for name, values in asdict(self).items()}


@dataclass(frozen=True)
class Generation:
    """The check of one original: its continuations, against which others are held."""

    prompts: torch.Tensor
    texts: torch.Tensor
    original: Written
    seed: int

    @classmethod
    def of(cls, model: Model, prompts: torch.Tensor, seed: int) -> Generation:
        """Let the original write on from ``prompts`` (rows, tokens), whole in memory for that."""
        twin = model.stored.twin()
        twin.weights.load(twin.weights.names)
        try:
            texts = continued(twin.module, prompts, seed=seed)
            return cls(prompts, texts, written(twin.module, prompts, texts), seed)
        finally:
            twin.weights.release(twin.weights.names)

    def against(self, module: nn.Module) -> dict[str, Any]:
        """What ``module`` does beside the original; ``failed`` says, in clauses, what is clearly worse.

        Continuations of its own differ from the original's by chance too, so that its interval of repetitions must lie wholly above the original's;
        texts that are foreseen are the same on both sides: its mean must lie below the original's interval.
        """
        sides = {"original": self.original, "compressed": written(module, self.prompts, self.texts)}
        found: dict[str, Any] = {name: side.summary(self.seed) for name, side in sides.items()}
        return {
            "continuations": len(self.prompts),
            "tokens": self.texts.shape[1] - self.prompts.shape[1],
            **found,
            "failed": _failed(**found),
        }


def _failed(original: Mapping[str, Mapping[str, float]], compressed: Mapping[str, Mapping[str, float]]) -> list[str]:
    clauses = []
    (mine, its) = (side["repeated"] for side in (compressed, original))
    if mine["low"] > its["high"]:
        clauses.append(f"{mine['mean']:.0%} of its own four tokens in a row are repetitions, {its['mean']:.0%} of the original's")
    (mine, its) = (side["agreed"] for side in (compressed, original))
    if mine["mean"] < its["low"]:
        clauses.append(f"it foresees {mine['mean']:.0%} of the tokens that the original writes, which itself foresees {its['mean']:.0%}")
    return clauses


def generates(model: Model) -> bool:
    """Whether it is a language model that writes on from token ids alone."""
    able = getattr(model.module, "can_generate", None)
    return model.is_causal and callable(able) and bool(able())


def prompts_of(model: Model, batches: Sequence[Batch]) -> torch.Tensor | None:
    """Beginnings of the first rows that have no padding there, as token ids (rows, tokens); None where there are none, or no positions are left."""
    rows = [row for batch in batches for row in _beginnings(batch)][:_PROMPTS]
    length, positions = min((len(row) for row in rows), default=0), getattr(model.config, "max_position_embeddings", None)
    room = not isinstance(positions, int) or positions >= length + _LONG
    return torch.stack([row[:length] for row in rows]) if len(rows) > 1 and room else None


def _beginnings(batch: Batch) -> list[torch.Tensor]:
    if not isinstance(batch, Mapping) or not batch.keys() <= {"input_ids", "attention_mask", "labels"} or batch["input_ids"].ndim != 2:
        return []
    ids, mask = batch["input_ids"][:, :_LEAD].cpu(), batch.get("attention_mask")
    whole = (
        torch.ones(len(ids), dtype=torch.bool)
        if mask is None or mask.shape != batch["input_ids"].shape
        else mask[:, :_LEAD].cpu().bool().all(1)
    )
    return list(ids[whole])


@torch.no_grad()
def continued(module: Any, prompts: torch.Tensor, seed: int | None = None, long: int = _LONG) -> torch.Tensor:
    """Prompts (rows, tokens) with ``long`` tokens more: the first choices, or drawn from the model's own distribution by ``seed``.

    Whatever generation settings came with the model do not count here. Raises ``ModelError`` where the model's own generation fails.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(do_sample=seed is not None, max_new_tokens=long, pad_token_id=0, use_cache=True)
    if seed is not None:
        settings.top_k, settings.top_p, settings.temperature = 0, 1.0, 1.0
    before, module.generation_config = module.generation_config, settings
    try:
        with hushed(), seeded(seed or 0):
            made = module.generate(prompts.to(_device(module)), attention_mask=torch.ones_like(prompts, device=_device(module)))
        return made.cpu()
    except Exception as error:  # a model's own code
        raise ModelError(f"generation: must run on token ids alone, failed ({quoted(error)}).") from error
    finally:
        module.generation_config = before


@torch.no_grad()
def written(module: nn.Module, prompts: torch.Tensor, texts: torch.Tensor) -> Written:
    """What ``module`` does on ``texts``, which the original drew on from ``prompts``, and in continuations of its own."""
    lead = prompts.shape[1]
    repeated = [repetition(row.tolist()) for row in continued(module, prompts)[:, lead:]]
    with hushed():
        logits = module(input_ids=texts.to(_device(module))).logits
    chosen = logits[:, lead - 1 : -1].argmax(-1).cpu()
    return Written(repeated, (chosen == texts[:, lead:]).double().mean(1).tolist())


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def repetition(tokens: Sequence[int]) -> float:
    """Share of the runs of four tokens that stood in ``tokens`` before.

    >>> repetition([1, 2, 3, 4, 5])
    0.0
    >>> repetition([1, 2, 3, 4] * 3)
    0.5555555555555556
    """
    runs = [tuple(tokens[at : at + _RUN]) for at in range(len(tokens) - _RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
