"""Two domains of the demo's text, sources and prose, each in three parts, and the demo fine-tuned on each."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch

from kept import HERE
from scenes import Made, scene
from scenes.training import drawn, fitted, next_token

DOMAINS, PARTS = ("sources", "prose"), ("train", "validation", "test")
_TOKENS, _BATCH, _STEPS, _RATE = 128, 8, 120, 3e-4


@functools.cache
def tokenizer() -> Any:
    """The demo's."""
    from transformers import AutoTokenizer

    from modicum.models.located import DEMO

    return AutoTokenizer.from_pretrained(DEMO)


@functools.cache
def documents(domain: str, part: str) -> tuple[str, ...]:
    """Sources as shipped (of which none was trained on), or help topics of this Python, which the demo saw in ``train`` alone."""
    from pydoc_data import topics

    from modicum.data.text import shipped

    sys.path.insert(0, str(HERE.parent / "scripts" / "demo"))
    from build_text import part_of

    known = {text.strip(): name for name, text in topics.topics.items()}
    if domain == "sources":
        return tuple(text for text in shipped("calibration" if part == "train" else part) if text.strip() not in known)
    of = {"train": "train", "calibration": "validation", "validation": "validation", "test": "test"}
    return tuple(text for text, name in known.items() if of[part_of(f"topic:{name}")] == part)


def windows(domain: str, part: str, tokens: int = _TOKENS) -> torch.Tensor:
    """Token ids (windows, tokens) of a domain's part, which do not overlap."""
    stream: list[int] = []
    for ids in tokenizer()(list(documents(domain, part)), verbose=False)["input_ids"]:
        stream += [*ids, tokenizer().eos_token_id]
    return torch.tensor(stream[: len(stream) // tokens * tokens]).view(-1, tokens)


@scene()
def specialist(folder: Path, domain: str = "prose", seed: int = 0) -> dict[str, Any]:
    """The demo fine-tuned whole on one domain: a folder that opens as any checkpoint."""
    from transformers import AutoModelForCausalLM

    from modicum.models.located import DEMO

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    rows = windows(domain, "train")
    loss = fitted(model, (rows[places] for places in drawn(len(rows), _BATCH, seed)), next_token, _RATE, _STEPS)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return {"loss": loss}


def opened(made: Made | str) -> torch.nn.Module:
    """A scene's language model in float32, or that of a folder."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(made if isinstance(made, str) else made.folder, dtype=torch.float32).eval()


@torch.no_grad()
def losses(model: torch.nn.Module, rows: torch.Tensor, together: int = 32) -> torch.Tensor:
    """Loss per token of each row."""
    found = []
    for some in rows.split(together):
        logits = model(input_ids=some, use_cache=False).logits[:, :-1].float()
        found.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), some[:, 1:], reduction="none").mean(1))
    return torch.cat(found)
