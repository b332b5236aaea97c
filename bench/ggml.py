"""Blocks for llama.cpp: what ours lose and take, beside llama.cpp's own quantizer with its importance matrix, on weights of the demo.

`python -m bench.ggml [TYPE ...]`. llama.cpp's columns need `llama-cpp-python`, whose library is called directly.
"""

from __future__ import annotations

import ctypes
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from bench.common import TOKENS, show
from modicum.core.ggml import TYPES, BlockType
from modicum.core.unit import Stats
from modicum.data import from_text
from modicum.forms.ggml import decode
from modicum.models.located import DEMO
from modicum.models.open import open_model
from modicum.quantize import Ggml

SAMPLES, BLOCKS, REPEATS = 16, (0, 3, 7), 3
Encode = Callable[[torch.Tensor, torch.Tensor, BlockType], torch.Tensor]


def main() -> None:
    torch.set_num_threads(1)
    asked = [word for word in sys.argv[1:] if word in TYPES] or list(TYPES)
    weights, theirs = _weights(), _llama()
    millions = sum(weight.numel() for weight, _ in weights) / 1e6
    rows = []
    for type in (TYPES[name] for name in asked):
        ways: dict[str, Encode | None] = {"llama": theirs, "weighed": _ours("weighed"), "gptq": _ours("gptq")}
        found = {way: _judged(encode, weights, type) for way, encode in ways.items() if encode is not None}
        against = lambda way, place: f"{found[way][place] / found['llama'][place]:.3f}" if "llama" in found else "-"
        speed = [f"{found[way][2] / millions:.3f} s" if way in found else "-" for way in ways]
        own = [f"{found[way][place]:.3e}" if way in found else "-" for way, place in (("llama", 0), ("weighed", 0))]
        felt = [f"{found[way][1]:.3e}" if way in found else "-" for way in ways]
        rows.append((type.name, f"{type.bits:g}", *own, against("weighed", 0), *felt, against("gptq", 1), *speed))
    head = [
        "type",
        "bits",
        "llama.cpp, weighed error",
        "ours",
        "ratio",
        "llama.cpp, output error",
        "ours to the nearest",
        "ours by GPTQ",
        "ratio",
    ]
    show(
        "Ggml: blocks for llama.cpp beside its own quantizer with its importance matrix",
        (*head, "llama.cpp, a million weights", "ours to the nearest", "ours by GPTQ"),
        rows,
        f"Demo, linear layers of blocks {', '.join(map(str, BLOCKS))}, inputs of {SAMPLES} x {TOKENS} calibration tokens. Errors are shares of the "
        "energy, geometric means of layers: each column weighted by its inputs' energy, and of the output under their whole covariance. One "
        "thread's processor seconds, the least of three."
        + ("" if theirs else " llama.cpp's columns are missing: llama-cpp-python is not installed."),
    )  # fmt: skip


def _judged(encode: Encode, weights: list[tuple[torch.Tensor, torch.Tensor]], type: BlockType) -> tuple[float, float, float]:
    """Error weighed by the energy of inputs, error of the output, and seconds for all weights."""
    weighed, felt, seconds = [], [], 0.0
    for weight, covariance in weights:
        times = []
        for _ in range(REPEATS):
            started = time.process_time()
            blocks = encode(weight, covariance, type)
            times.append(time.process_time() - started)
        seconds += min(times)
        error, square = (weight - decode(blocks, type.name, weight.shape[1])).double(), covariance.double()
        share = lambda matrix, error=error, weight=weight: float(
            ((error @ matrix) * error).sum() / ((weight.double() @ matrix) * weight).sum()
        )
        weighed.append(share(square.diagonal().diag()))
        felt.append(share(square))
    return statistics.geometric_mean(weighed), statistics.geometric_mean(felt), seconds


def _ours(rounding: str) -> Encode:
    def encode(weight: torch.Tensor, covariance: torch.Tensor, type: BlockType) -> torch.Tensor:
        stats = Stats(count=1, covariance=covariance, square=covariance.diagonal())
        return Ggml(type=type.name, rounding=rounding).code(weight, stats, torch.float32).blocks

    return encode


def _llama() -> Encode | None:
    """llama.cpp's own quantizer, where its library is installed."""
    found = importlib.util.find_spec("llama_cpp")
    paths = sorted(Path(found.origin).parent.glob("lib/libggml-base.*")) if found is not None and found.origin else []
    if not paths:
        print("llama.cpp is left out: llama-cpp-python is not installed")
        return None
    quantize = ctypes.CDLL(str(paths[0]), mode=ctypes.RTLD_GLOBAL).ggml_quantize_chunk
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]

    def encode(weight: torch.Tensor, covariance: torch.Tensor, type: BlockType) -> torch.Tensor:
        rows, columns = weight.shape
        blocks, importance = torch.empty(rows, type.row_bytes(columns), dtype=torch.uint8), covariance.diagonal().contiguous()
        quantize(type.number, weight.data_ptr(), blocks.data_ptr(), 0, rows, columns, importance.data_ptr())
        return blocks

    return encode


def _weights() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights of some blocks of the demo, and the covariance of their inputs on calibration texts."""
    model, sums = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32), {}
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}

    def seen(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2)
        sums[module] = sums.get(module, 0) + rows.T @ rows / (SAMPLES * TOKENS)

    for module, name in names.items():
        if any(f".{block}." in name for block in BLOCKS):
            module.register_forward_pre_hook(seen)
    with torch.no_grad():
        for batch in from_text(None, open_model("demo").tokenizer, samples=SAMPLES, tokens=TOKENS).calibration:
            model(**batch)
    return [(module.weight.detach().clone(), total) for module, total in sums.items()]


if __name__ == "__main__":
    main()
