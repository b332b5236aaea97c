"""A second model for what one model cannot show: built otherwise than the demo, trained once on the demo's text, and kept.

Parallel attention and MLP, layer norms and biases (GPT-NeoX), a twelfth of the demo's size, half a minute of training.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from kept import HERE
from scenes import scene

sys.path.insert(0, str(HERE.parent / "scripts" / "demo"))

# One document in so many is read; windows of so many tokens, so many at once, for so many steps.
_SHARE, _TOKENS, _BATCH, _STEPS, _WARM, _RATE = 16, 128, 8, 300, 30, 3e-3


@scene()
def second(folder: Path) -> dict[str, Any]:
    """A folder that opens as any checkpoint; the loss is that of the last steps."""
    return {"loss": train(folder)}


def train(folder: Path) -> float:
    """Train and save; the mean loss of the last steps, each on tokens not seen before."""
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    from modicum.models.located import DEMO
    from train import encode

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    windows = encode(tokenizer, text())[: _STEPS * _BATCH * _TOKENS].view(-1, _TOKENS)
    windows = windows[torch.randperm(len(windows))]
    config = GPTNeoXConfig(
        vocab_size=1024, hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model, losses = GPTNeoXForCausalLM(config).train(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / _WARM, (_STEPS - step) / (_STEPS - _WARM)))
    for batch in windows.split(_BATCH):
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pace.step()
        losses.append(loss.item())
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(losses[-20:]) / 20


def text() -> str:
    """Training documents of the demo, of this Python's library."""
    from build_text import SEPARATOR, documents

    return SEPARATOR.join([found for part, found in documents() if part == "train"][::_SHARE])
