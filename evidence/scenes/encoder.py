"""A small BERT that tells modules of Python's library apart by a few lines of theirs, and a task for it: eight modules that it has not seen."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kept import HERE
from scenes import Made, scene
from scenes.domains import documents, tokenizer
from scenes.training import classes, drawn, fitted

TOKENS, CLASSES = 32, 8
# Of training: modules, windows of each, windows in a batch, updates, rate.
_MODULES, _EACH, _BATCH, _STEPS, _RATE = 48, 300, 64, 500, 1e-3


def config(labels: int = CLASSES) -> Any:
    """A BERT's of half a million parameters."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=1024, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=384, max_position_embeddings=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0, num_labels=labels,
    )  # fmt: skip


@scene()
def encoder(folder: Path, seed: int = 0) -> dict[str, Any]:
    """A folder that ``BertForSequenceClassification`` opens; told is the loss of the last updates."""
    from transformers import BertForSequenceClassification

    sys.path.insert(0, str(HERE.parent / "scripts" / "demo"))
    from build_text import documents as all_documents

    torch.manual_seed(seed)
    longest = sorted((text for part, text in all_documents() if part == "train"), key=len, reverse=True)[:_MODULES]
    rows = [each[torch.randperm(len(each))[:_EACH]] for each in map(_windows, longest)]
    x, y = torch.cat(rows), torch.cat([torch.full((len(each),), label) for label, each in enumerate(rows)])
    model = BertForSequenceClassification(config(_MODULES))
    last = fitted(model, ((x[places], y[places]) for places in drawn(len(x), _BATCH, seed)), classes, _RATE, _STEPS)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return {"loss": last}


def _windows(text: str) -> torch.Tensor:
    ids = tokenizer()(text[:60_000], verbose=False)["input_ids"]
    return torch.tensor(ids[: len(ids) // TOKENS * TOKENS]).view(-1, TOKENS)


@functools.cache
def modules(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows (windows, 32) of the eight longest of the shipped test modules, and which each is of: of each the first 120 to train, 40, 80."""
    of = {"train": slice(0, 120), "validation": slice(120, 160), "test": slice(160, 240)}
    longest = sorted(documents("sources", "test"), key=len, reverse=True)[:CLASSES]
    streams = [
        torch.tensor(ids[: len(ids) // TOKENS * TOKENS]).view(-1, TOKENS) for ids in tokenizer()(longest, verbose=False)["input_ids"]
    ]
    order = [each[torch.randperm(len(each), generator=torch.Generator().manual_seed(0))][of[part]] for each in streams]
    return torch.cat(order), torch.cat([torch.full((len(each),), label) for label, each in enumerate(order)])


def opened(made: Made, seed: int = 0) -> nn.Module:
    """The encoder with a head of eight classes that begins at random."""
    from transformers import BertForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(seed)
    return BertForSequenceClassification.from_pretrained(made.folder, num_labels=CLASSES, ignore_mismatched_sizes=True).eval()


@torch.no_grad()
def accuracy(model: nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of windows whose module is told."""
    return float((model(input_ids=ids).logits.argmax(1) == labels).float().mean())
