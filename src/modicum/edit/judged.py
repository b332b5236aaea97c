"""What an edit is worth: targets reached, carried to other wordings, neighbours left alone, and what ordinary text costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modicum.edit.facts import Fact
from modicum.edit.rows import IGNORED, Rows, encoded, prompts
from modicum.edit.taught import Taught, parts
from modicum.numerics.interval import interval


@dataclass(frozen=True)
class Judged:
    """A model at one time: of each fact whether greedy decoding gives its target, the same of each paraphrase, the token after each neighbour, and
    the loss per token of each held-out sequence.
    """

    reached: list[bool]
    carried: list[bool]
    neighbours: list[int]
    losses: list[float]


def judged(taught: Taught, facts: Sequence[Fact], text: torch.Tensor) -> Judged:
    """Judge a model on facts and on ``text`` int64 (sequences, tokens)."""
    with torch.no_grad(), taught.computing():
        alike = [Fact(prompt, fact.target, where=fact.where) for fact in facts for prompt in fact.paraphrases]
        apart = [text for fact in facts for text in fact.neighbours]
        return Judged(
            reached(taught, facts),
            reached(taught, alike),
            _next(taught, prompts(taught.tokenizer, apart)) if apart else [],
            losses(taught, text),
        )


def reached(taught: Taught, facts: Sequence[Fact]) -> list[bool]:
    """Whether greedy decoding after each prompt gives the whole target."""
    found: list[bool] = []
    for part in parts(encoded(taught.tokenizer, facts, taught.longest)) if facts else ():
        best, labels = taught.logits(part).argmax(-1)[:, :-1], part.labels[:, 1:]
        found += ((best == labels) | (labels == IGNORED)).all(1).tolist()
    return found


def losses(taught: Taught, text: torch.Tensor) -> list[float]:
    """Mean loss per token of each sequence."""
    found: list[float] = []
    for some in text.split(8):
        logits = taught.module(input_ids=some, use_cache=False).logits.float()
        found += torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), some[:, 1:], reduction="none").mean(1).tolist()
    return found


def _next(taught: Taught, rows: Rows) -> list[int]:
    found: list[int] = []
    for part in parts(rows):
        logits = taught.logits(part)
        found += logits[torch.arange(len(part)), part.ends].argmax(-1).tolist()
    return found


def summary(before: Judged, after: Judged) -> dict[str, Any]:
    """Shares before and after with 95 % intervals over facts, and the change of perplexity with one over sequences, which are the same."""
    rows: dict[str, Any] = {
        "efficacy": {"before": _share(before.reached), "after": _share(after.reached)},
        "generalisation": {"before": _share(before.carried), "after": _share(after.carried)},
        "locality": {"after": _share([one == other for one, other in zip(before.neighbours, after.neighbours)])},
    }
    mean, low, high = interval([new - old for new, old in zip(after.losses, before.losses)])
    old, new = (math.exp(float(np.mean(each.losses))) for each in (before, after))
    rows["perplexity"] = {
        "before": old, "after": new, "change": math.expm1(mean), "interval": [math.expm1(low), math.expm1(high)],
        "sequences": len(after.losses),
    }  # fmt: skip
    return rows


def each(facts: Sequence[Fact], before: Judged, after: Judged) -> list[dict[str, Any]]:
    """Of each fact whether it was reached before and after, each paraphrase after, and whether each neighbour was left alone."""
    carried, apart = iter(after.carried), iter(one == other for one, other in zip(before.neighbours, after.neighbours))
    return [
        {
            "prompt": fact.prompt, "target": fact.target, "before": old, "after": new,
            "paraphrases": [next(carried) for _ in fact.paraphrases], "neighbours": [next(apart) for _ in fact.neighbours],
        }
        for fact, old, new in zip(facts, before.reached, after.reached)
    ]  # fmt: skip


def _share(found: Sequence[bool]) -> dict[str, Any]:
    """The share that holds, with Wilson's 95 % interval; of nothing, no share."""
    count, z = len(found), 1.959964
    if not count:
        return {"share": None, "interval": None, "count": 0}
    share = sum(found) / count
    middle, width = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = ((middle + sign * width) / (1 + z * z / count) for sign in (-1, 1))
    return {"share": share, "interval": [max(0.0, low), min(1.0, high)], "count": count}
