"""Cut a mixture-of-experts model to a size: bits for all weights, and whole experts left out where that is the better buy.

A small mixture is trained first, for a minute, on the texts shipped with modicum: what a choice is worth shows on trained weights only.

python docs/gallery/04_experts_to_a_size.py
"""

from __future__ import annotations

from collections import Counter
from itertools import cycle, islice

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import modicum
from modicum.data.splits import from_text

STEPS, TOKENS = 150, 64
SIZES = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2,
    "norm_topk_prob": True, "max_position_embeddings": 128, "decoder_sparse_step": 1, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def main() -> None:
    """Train, then fit with bits alone and with experts on the menu, at the same bytes."""
    texts = from_text(None, modicum.open_model("demo").tokenizer, samples=256, tokens=TOKENS, batch=16, test_samples=64)
    model = trained(texts.calibration)
    batches = [*texts.calibration[:4], *texts.test]
    print(f"{'bpw':>4} {'menu':<22} {'bytes':>8} {'perplexity':>19} {'KL':>8}  what was chosen")
    for bpw in (4.2, 6.0):
        for name, menu in (("bits alone", "int2,int3,int4,int8"), ("bits and experts", "int2,int3,int4,int8,experts keep=0")):
            result = modicum.fit(model, bpw=bpw, data=batches, menu=menu, group=32, target="modicum", search_time=10)
            show(bpw, name, result)


def trained(batches: list) -> torch.nn.Module:
    """A small mixture after ``STEPS`` steps."""
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    model.train()
    for batch in islice(cycle(batches), STEPS):
        loss = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"trained {STEPS} steps to a loss of {loss.item():.3f}, {sum(p.numel() for p in model.parameters()):,} parameters")
    return model.eval()


def show(bpw: float, menu: str, result: modicum.Result) -> None:
    """Print one row."""
    size, quality = result.receipt["bytes"]["actual"], result.receipt["quality"]
    options = Counter("expert left out" if "experts" in text else text.split(" group")[0] for text in result.plan.options.values())
    rise = f"{quality['perplexity_original']:.2f} to {quality['perplexity']:.2f}"
    chosen = ", ".join(f"{count} {text}" for text, count in options.most_common(5))
    print(f"{bpw:>4} {menu:<22} {size:>8} {rise:>19} {quality['mean']:>8.4f}  {chosen}")


if __name__ == "__main__":
    main()
