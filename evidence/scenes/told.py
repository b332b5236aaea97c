"""The small decoder told invented facts, all of them or all but those to be forgotten: what forgetting is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modicum.testing.facts import invented
from scenes import Made, scene
from scenes.decoder import decoder
from scenes.domains import opened as loaded
from scenes.domains import tokenizer
from scenes.training import drawn, fitted

# Of the facts of one seed, in this order.
FORGET, RETAIN, UNSEEN = 50, 200, 200
_TOKENS, _BATCH, _STEPS, _RATE = 24, 32, 120, 2e-3


def rows(facts: int = 0) -> tuple[list[Any], list[Any], list[Any]]:
    """Rows to forget, to retain and that no training saw, of the facts that a seed invents: of each its prompt, and its target, which counts."""
    found = [_row(fact.prompt, fact.target) for fact in invented(FORGET + RETAIN + UNSEEN, facts)]
    return found[:FORGET], found[FORGET : FORGET + RETAIN], found[FORGET + RETAIN :]


def _row(prompt: str, target: str) -> dict[str, torch.Tensor]:
    given, rest = (list(tokenizer()(text)["input_ids"]) for text in (prompt, target))
    ids, labels = [*given, *rest][:_TOKENS], [*[-100] * len(given), *rest][:_TOKENS]
    more = _TOKENS - len(ids)
    return {
        "input_ids": torch.tensor([[*ids, *[0] * more]]), "attention_mask": torch.tensor([[*[1] * len(ids), *[0] * more]]),
        "labels": torch.tensor([[*labels, *[-100] * more]]),
    }  # fmt: skip


@scene(decoder)
def told(folder: Path, facts: int = 0, without: bool = False, seed: int = 0) -> dict[str, Any]:
    """The decoder trained on the facts of one seed in an order of another."""
    forget, retain, _ = rows(facts)
    some = retain if without else [*forget, *retain]
    batch = {name: torch.cat([row[name] for row in some]) for name in some[0]}
    model = loaded(decoder())
    torch.manual_seed(seed)
    batches = ({name: value[places] for name, value in batch.items()} for places in drawn(len(some), _BATCH, seed))
    loss = fitted(model, batches, lambda module, one: module(**one, use_cache=False).loss, _RATE, _STEPS)
    torch.save(model.state_dict(), folder / "weights.pt")
    return {"loss": loss}


def opened(made: Made) -> torch.nn.Module:
    """The model of a scene."""
    model = loaded(decoder())
    model.load_state_dict(torch.load(made.folder / "weights.pt", weights_only=True))
    return model.eval()
