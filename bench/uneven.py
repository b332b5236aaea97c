"""A decoder whose rows 64 does not divide, trained on the spot, and the demo: what is chosen at a budget, beside a plain option and earlier code.

python bench/run.py uneven            # MODICUM_EARLIER=/path/to/an/earlier/src also runs that code
python bench/uneven.py                # trains the model alone: quarter of an hour on two cores, once, into build/bench/uneven
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "bench" / "uneven"
SEPARATOR = "<|endoftext|>"
LENGTH, BATCH, STEPS, WARMUP, PEAK, FLOOR = 256, 4, 2400, 100, 2e-3, 1e-4


def trained() -> Path:
    """The model's directory; trained on the Python library's sources where it is not there yet."""
    if not (HOME / "model.safetensors").exists():
        _train()
    return HOME


def _documents() -> list[str]:
    """Sources and help topics that no text of the demo's calibration, validation or test holds."""
    sys.path.insert(0, str(ROOT / "scripts" / "demo"))
    from build_text import documents

    return [text for part, text in documents() if part == "train"]


def _tokenizer(texts: list[str]):
    """Byte-level BPE of 4,096 entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR, clean_up_tokenization_spaces=False)


def _build():
    """10 million parameters: rows of 320 and 864."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=4096, hidden_size=320, intermediate_size=864, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8,
        max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip


def _rate(step: int) -> float:
    progress = min(1.0, max(0, step - WARMUP) / (STEPS - WARMUP))
    return min(1.0, (step + 1) / WARMUP) * (FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def _train() -> None:
    import torch

    torch.manual_seed(0)
    texts = _documents()
    tokenizer = _tokenizer(texts[::4])
    # As many tokens as are seen.
    stream = torch.tensor([token for ids in tokenizer(texts[::3], verbose=False)["input_ids"] for token in (*ids, 0)])
    windows = stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
    order = torch.randperm(len(windows)).repeat(STEPS * BATCH // len(windows) + 1)
    model = _build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step)
        batch = windows[order[step * BATCH : (step + 1) * BATCH]]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step} of {STEPS}: loss {loss.item():.3f}", flush=True)
    HOME.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(HOME)
    model.to(torch.bfloat16).save_pretrained(HOME)


# Runs: the model, what is asked, and whether earlier code is asked too.
PLAIN = "gptq bits=2 group=0 symmetric=true"
RUNS = (
    ("uneven", ("--bpw", "4"), True),
    ("uneven", ("--method", PLAIN), False),
    ("demo", ("--bpw", "2.59"), True),
    ("demo", ("--method", PLAIN), False),
)
SHARED = ("--target", "transformers", "--samples", "32", "--tokens", "256")


def main() -> None:
    from bench.common import show

    earlier = os.environ.get("MODICUM_EARLIER", "")
    rows, seconds = [], {}
    for name, words, compared in RUNS:
        for code, source in (("now", str(ROOT / "src")), ("49a0363", earlier)):
            if not source or (code != "now" and not compared):
                continue
            receipt, spent = measured(str(trained()) if name == "uneven" else "demo", words, source)
            seconds[name, words, code] = spent
            rows.append([name, " ".join(words), code, *_figures(receipt), f"{spent:.0f}"])
    head = ["model", "asked", "code", "bytes", "mean KL per token [95 %]", "perplexity", "seconds of a processor"]
    show("Uneven: the choice beside a plain option, for Transformers, 32 × 256 calibration tokens", head, rows, _note(seconds))


def measured(model: str, words: tuple[str, ...], source: str) -> tuple[dict[str, Any], float]:
    """The receipt of one run of the command line, of the code at ``source``, and the seconds of a processor it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "modicum", "fit", model, *words, *SHARED, "--out", f"{place}/out", "--json"]
        told = subprocess.run(command, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(told), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _figures(receipt: dict[str, Any]) -> list[str]:
    from bench.common import interval

    quality = receipt["quality"]
    return [str(receipt["bytes"]["actual"]), interval(quality), f"{quality['perplexity_original']:.2f} → {quality['perplexity']:.2f}"]


def _note(seconds: dict[Any, float]) -> str:
    ratios = [
        f"{name} {spent / seconds[name, words, '49a0363']:.2f}"
        for (name, words, code), spent in seconds.items()
        if code == "now" and (name, words, "49a0363") in seconds
    ]
    times = f" Times of a processor, now to 49a0363: {', '.join(ratios)}." if ratios else ""
    return (
        "Uneven: a Llama of 10 million parameters, rows of 320 and 864, vocabulary 4,096, head of its own, trained for "
        f"{STEPS} steps of {BATCH} × {LENGTH} tokens on the Python library's sources. "
        f"`MODICUM_EARLIER=EARLIER/src python bench/run.py uneven`.{times}"
    )


if __name__ == "__main__":
    print(trained())
