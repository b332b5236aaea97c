"""Files for llama.cpp beside those of its own quantizer with its importance matrix, at its bytes: `python -m bench.llama_cpp [MODEL ...]`.

llama.cpp judges both: its logits on held-out text against the original's. Skipped where llama-cpp-python is not installed.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

import modicum
from bench.common import ROOT, SAMPLES, TOKENS, show
from modicum.data.splits import from_text
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.models.open import open_model
from modicum.numerics.interval import interval

sys.path.insert(0, str(ROOT / "tests" / "interop"))
MIXTURES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K")
TEST = 32


def main(words: list[str] | None = None) -> None:
    try:
        import llama_cpp
    except ImportError as error:
        print(f"llama.cpp's mixtures: llama_cpp cannot be imported ({error}), skipped")
        return
    import llama

    heard = llama.listen(llama_cpp)
    rows = [row for model in words or ["demo"] for row in compared(llama_cpp, llama, model)]
    head = ("model", "mixture", "bytes", "its KL", "ours", "ours of its", "its seconds")
    note = (
        f"`python -m bench.llama_cpp`: {SAMPLES} x {TOKENS} calibration tokens for both, {TEST} test sequences, logits of llama.cpp; its importance "
        "matrix is the mean square of each input on the same tokens. Ours are chosen from one measurement at the bytes of its files."
    )
    show("Mixtures of llama.cpp: KL to the original at equal bytes", head, rows, note)
    del heard


def compared(package: Any, judge: Any, name: str) -> list[tuple[str, ...]]:
    opened = open_model(name)
    text = from_text(None, opened.tokenizer, samples=SAMPLES, tokens=TOKENS, seed=0, batch=8, test_samples=TEST)
    tests = torch.cat([batch["input_ids"] for batch in text.test])
    original = AutoModelForCausalLM.from_pretrained(opened.directory, dtype=torch.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        place = Path(folder)
        wanted = [original(row[None]).logits[0] for row in tests]
        subject = Subject.open(name, Settings(samples=1, tokens=32, test_samples=1))
        subject.target("gguf").layout({}, {}, frozenset()).write(place)
        matrix = importance(original, [batch["input_ids"] for batch in text.calibration], subject.target("gguf"))
        with torch.enable_grad():
            modicum.measure(name, out=place / "measured", target="gguf", samples=SAMPLES, tokens=TOKENS)
        for mixture in MIXTURES:
            begun = time.process_time()
            quantized(package, place / "model.gguf", place / "theirs.gguf", mixture, matrix)
            spent = time.process_time() - begun
            size = (place / "theirs.gguf").stat().st_size
            with torch.enable_grad():
                ours = modicum.fit(measured=place / "measured", size=size, out=place / mixture, allow_broken=True).out / "model.gguf"
            lost = [divergences(package, judge, path, tests, wanted) for path in (place / "theirs.gguf", ours)]
            means = [interval(values) for values in lost]
            told = [f"{mean:.5f} [{low:.5f}, {high:.5f}]" for mean, low, high in means]
            rows.append((name, mixture, f"{size}", *told, f"{means[1][0] / means[0][0]:.2f}", f"{spent:.1f}"))
            print(rows[-1], flush=True)
    return rows


def importance(model: nn.Module, batches: list[torch.Tensor], target: Any) -> dict[str, torch.Tensor]:
    """Mean square of every column of inputs, by the name of the weight's tensor in the file."""
    sums: dict[str, list[torch.Tensor]] = {}
    keep = lambda name: lambda module, inputs: sums.setdefault(name, []).append(inputs[0].flatten(0, -2).square().mean(0))
    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for batch in batches:
        model(batch)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, parts in sums.items():
        if f"{name}.weight" in target.model.weights.names:
            (part,) = target._parts(f"{name}.weight", tuple(model.get_parameter(f"{name}.weight").shape))
            found[part.name] = torch.stack(parts).mean(0).float()
    return found


def quantized(package: Any, source: Path, out: Path, mixture: str, matrix: dict[str, torch.Tensor]) -> None:
    """What llama.cpp's quantizer makes of a file, one thread."""
    entries = (package.llama_model_imatrix_data * (len(matrix) + 1))()  # the last has no name
    for entry, (name, values) in zip(entries, matrix.items()):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = ctypes.cast(values.data_ptr(), ctypes.POINTER(ctypes.c_float))
    settings = package.llama_model_quantize_default_params()
    settings.nthread, settings.ftype, settings.imatrix = 1, getattr(package, f"LLAMA_FTYPE_MOSTLY_{mixture}"), entries
    assert package.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings)) == 0, f"{mixture} failed"


def divergences(package: Any, judge: Any, path: Path, rows: torch.Tensor, wanted: list[torch.Tensor]) -> list[float]:
    """Mean KL of each sequence."""
    with judge.opened(package, path) as (logits, _):
        return [float(judge.divergence(original, logits(row.tolist())).mean()) for row, original in zip(rows, wanted)]


if __name__ == "__main__":
    main(sys.argv[1:])
