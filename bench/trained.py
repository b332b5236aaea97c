"""Small decoders trained on the spot on the Python library's sources, with the demo's tokenizer: `python -m bench.trained [NAME ...]`.

Each takes minutes on two cores, once, and stays in ``build/bench``. The texts are those of the running Python's library: for published figures, 3.11.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bench.common import ROOT

HOME = ROOT / "build" / "bench"
SEPARATOR = "<|endoftext|>"
LENGTH, WARMUP, FLOOR = 256, 100, 1e-4
MARKS: dict[str, Any] = {"vocab_size": 1024, "bos_token_id": 0, "eos_token_id": 0}
BATCH, STEPS, PEAK = 8, 2000, 3e-3


def qwen3() -> PreTrainedModel:
    """3.8 million parameters: rows of 256 and 512, embedding and head tied, two heads of keys and values."""
    return Qwen3ForCausalLM(Qwen3Config(
        hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        max_position_embeddings=512, tie_word_embeddings=True, **MARKS,
    ))  # fmt: skip


def gpt2() -> PreTrainedModel:
    """5 million parameters: rows of 320, which blocks of 256 do not fill, and of 768; biases, learned positions, embedding and head tied."""
    return GPT2LMHeadModel(GPT2Config(
        n_embd=320, n_inner=768, n_layer=5, n_head=5, n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **MARKS,
    ))  # fmt: skip


def neox() -> PreTrainedModel:
    """3.8 million parameters: rows of 256 and 768, biases, queries, keys and values in one weight, both halves of a block from one input."""
    return GPTNeoXForCausalLM(GPTNeoXConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=5, num_attention_heads=4, max_position_embeddings=512,
        tie_word_embeddings=False, **MARKS,
    ))  # fmt: skip


MODELS: dict[str, Callable[[], PreTrainedModel]] = {"qwen3": qwen3, "gpt2": gpt2, "neox": neox}


def trained(name: str) -> Path:
    """A model's directory; trained where it is not there yet."""
    home = HOME / name
    if not (home / "model.safetensors").exists():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(ROOT / "src" / "modicum" / "demo" / "model")
        windows = encoded(tokenizer, documents()[::3])
        model = MODELS[name]()
        train(model, windows, STEPS, BATCH, PEAK)
        save(model, tokenizer, home)
    return home


def documents() -> list[str]:
    """Sources and help topics that no text of the demo's calibration, validation or test holds."""
    sys.path.insert(0, str(ROOT / "scripts" / "demo"))
    from build_text import documents as parted

    return [text for part, text in parted() if part == "train"]


def encoded(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Token ids (windows, tokens of each), a separator after each text."""
    stream = torch.tensor([token for ids in tokenizer(texts, verbose=False)["input_ids"] for token in (*ids, 0)])
    return stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)


def train(model: PreTrainedModel, windows: torch.Tensor, steps: int, batch: int, peak: float) -> None:
    """Adam with a cosine, windows in an order drawn anew for each pass."""
    order = torch.cat([torch.randperm(len(windows)) for _ in range(steps * batch // len(windows) + 1)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    model.train()
    for step in range(steps):
        progress = min(1.0, max(0, step - WARMUP) / (steps - WARMUP))
        for group in optimizer.param_groups:
            group["lr"] = min(1.0, (step + 1) / WARMUP) * (FLOOR + (peak - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))
        rows = windows[order[step * batch : (step + 1) * batch]]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=rows).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    model.eval()


def save(model: PreTrainedModel, tokenizer: Any, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(home)
    model.to(torch.bfloat16).save_pretrained(home)


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        print(trained(name))
