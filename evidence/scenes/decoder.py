"""A decoder of a million parameters, trained on Python's library and no prose: small enough for many trainings in a row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from kept import HERE
from scenes import scene
from scenes.domains import tokenizer
from scenes.training import fitted, next_token

# One document in so many is read; windows of so many tokens, so many at once, for so many steps.
_SHARE, _TOKENS, _BATCH, _STEPS, _RATE = 8, 128, 8, 1300, 3e-3


def config(width: int = 128, layers: int = 4) -> Any:
    """A Llama's, with one table for both ends."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=1024, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=max(1, width // 32),
        num_key_value_heads=max(1, width // 32), max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


def text(tokens: int = _TOKENS, share: int = _SHARE) -> torch.Tensor:
    """Windows (windows, tokens) of the training sources of this Python's library, in an order that one seed draws."""
    sys.path.insert(0, str(HERE.parent / "scripts" / "demo"))
    from pydoc_data import topics

    from build_text import documents

    prose = set(topics.topics.values())
    stream: list[int] = []
    for ids in tokenizer()([text for part, text in documents() if part == "train" and text not in prose][::share], verbose=False)[
        "input_ids"
    ]:
        stream += [*ids, tokenizer().eos_token_id]
    rows = torch.tensor(stream[: len(stream) // tokens * tokens]).view(-1, tokens)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


@scene()
def decoder(folder: Path, width: int = 128, layers: int = 4, seed: int = 0, steps: int = _STEPS) -> dict[str, Any]:
    """A folder that opens as any checkpoint; the loss is that of the last steps, on tokens not seen before."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(width, layers))
    loss = fitted(model, text().split(_BATCH), next_token, _RATE, steps)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return {"loss": loss, "parameters": sum(each.numel() for each in model.parameters())}
