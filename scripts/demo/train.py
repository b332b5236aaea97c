"""Train the demo model from scratch on the frozen text and save it, with its training curve, into the package.

python scripts/demo/train.py            # about an hour on two cores
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time

import torch
from build_text import BUILD, PACKAGE, SEPARATOR
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

LENGTH, BATCH, WARMUP, PEAK, FLOOR = 512, 16, 100, 3e-3, 1e-4


def encode(tokenizer, text: str) -> torch.Tensor:
    """One stream of token ids, each document followed by the separator."""
    end = tokenizer.eos_token_id
    stream = []
    for ids in tokenizer([part for part in text.split(SEPARATOR) if part], verbose=False)["input_ids"]:
        stream += [*ids, end]
    return torch.tensor(stream, dtype=torch.long)


def perplexity(model, stream: torch.Tensor) -> float:
    """Over non-overlapping windows of ``LENGTH`` tokens, each predicting all but its first."""
    windows = stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
    losses = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in windows.split(BATCH):
            logits = model(input_ids=batch).logits[:, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"))
    return math.exp(torch.cat(losses).mean().item())


def build() -> LlamaForCausalLM:
    """7.3 million parameters, 14.7 MB in bfloat16."""
    config = LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=LENGTH, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        rope_theta=10000.0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def main() -> None:
    """Train for ``--steps`` and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "model")
    stream = encode(tokenizer, (BUILD / "train.txt").read_text())
    validation = encode(tokenizer, lzma.decompress((PACKAGE / "validation.txt.xz").read_bytes()).decode())
    windows = stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
    order = torch.cat([torch.randperm(len(windows)) for _ in range(arguments.steps * BATCH // len(windows) + 1)])
    model = build()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=PEAK, betas=(0.9, 0.95), fused=True
    )
    curve, started = [], time.time()
    for step in range(arguments.steps):
        progress = min(1.0, max(0, step - WARMUP) / (arguments.steps - WARMUP))
        rate = min(1.0, (step + 1) / WARMUP) * (FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = windows[order[step * BATCH : (step + 1) * BATCH]]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == arguments.steps:
            row = {"step": step + 1, "tokens": (step + 1) * BATCH * LENGTH, "train_loss": round(loss.item(), 4),
                   "validation_perplexity": round(perplexity(model, validation), 4), "seconds": round(time.time() - started)}  # fmt: skip
            curve.append(row)
            print(json.dumps(row), flush=True)
        elif step in (5, 20):
            print(step, loss.item(), f"{time.time() - started:.1f} s", flush=True)
    model.to(torch.bfloat16).save_pretrained(PACKAGE / "model")
    (BUILD / "curve.json").write_text(json.dumps({"seed": arguments.seed, "torch": torch.__version__, "curve": curve}, indent=1))


if __name__ == "__main__":
    main()
