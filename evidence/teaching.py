"""What the rows on editing share: a small decoder that is taught facts it cannot know, and what it costs on other text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from modicum.edit.facts import Fact
from modicum.edit.judged import judged, losses, reached
from modicum.edit.opening import taught as opened
from modicum.edit.taught import Taught
from scenes.decoder import decoder, text
from scenes.domains import opened as loaded
from scenes.domains import tokenizer

PROTECTED, TEST = 64, 32
DATA = (
    "A decoder of a million parameters trained on Python's library; facts are base classes of classes with invented names, of which it knows none. "
    "Drift is judged on 32 windows of 128 tokens that it was not trained on"
)


def pupil(seed: int) -> tuple[Taught, torch.Tensor]:
    """The decoder as editors see it, and text to judge drift on, which it never saw."""
    made = decoder()
    rows = text()[-(PROTECTED + TEST) :]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return opened(loaded(made), tokenizer(), rows[order[:PROTECTED]]), rows[order[PROTECTED:]]


def told(taught_: Taught, facts: Sequence[Fact], test: torch.Tensor, before: Sequence[float]) -> dict[str, float]:
    """Shares of facts and paraphrases that are reached, and by how much the loss per token of other text rose."""
    found = judged(taught_, facts, test)
    share = lambda some: sum(some) / max(1, len(some))
    return {
        "efficacy": share(found.reached), "paraphrases": share(found.carried),
        "loss more on other text": statistics.mean(found.losses) - statistics.mean(before),
    }  # fmt: skip


def before(one: Taught, facts: Sequence[Fact], test: torch.Tensor) -> tuple[list[float], float]:
    """Losses on other text, and the share of facts that is known already."""
    with torch.no_grad():
        return losses(one, test), sum(reached(one, facts)) / len(facts)
