"""What a run costs where products of half precision are fast, and where they are not: processor seconds of one ``fit``, each in a process of its own.

``MODICUM_EARLIER=EARLIER/src`` adds an earlier version. The slow path is forced, and shown to be by the rates that torch has on it.
``python -m bench.compute 160m`` takes random weights of that size and few tokens; a run of over ``LONGEST`` is cut off and says so. ``160m-nearest``
rounds the same weights to the nearest, which leaves the products, without bfloat16 units alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.common import ROOT, SAMPLES, show

SLOW = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
PATHS = {"as it is": {}, "without bfloat16 units": SLOW}
LONGEST = 1200
# The target whose loader needs no probe, and a menu that is measured on gradients and made in one sweep.
MENU = {"160m-nearest": "nearest bits=3,nearest bits=4,nearest bits=8"}
WORDS = ("--target", "modicum", "--bpw", "4.5", "--search-time", "0")
READ = {
    "demo": ("--samples", str(SAMPLES), "--test-samples", "16"),
    "160m": ("--samples", "4", "--tokens", "128", "--test-samples", "4"),
    "160m-nearest": ("--samples", "4", "--tokens", "256", "--test-samples", "4"),
}
_RATES = """
import torch
from modicum.runtime.compute import time_product
rate = lambda kind, dtype: 2e-9 * 64 * 512 * 512 / time_product(kind, dtype, 512, 512)
print(*(f"{kind} {rate(kind, torch.float32):.0f} and {rate(kind, torch.bfloat16):.1f}" for kind in ("linear", "gradient")), sep=", ")
"""


def main(size: str = "demo") -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = _demo() if size == "demo" else _random(place / "random")
        models = {"bfloat16": source, "its float32 copy": _widened(source, place / "wide")}
        rows, rates = [], []
        for path, extra in (each for each in PATHS.items() if size not in MENU or each[1]):
            rates.append(f"{path}: {_ran((sys.executable, '-c', _RATES), _environment(extra, place))[0].strip()}")
            for version, source in _versions().items():
                found = {name: _fitted(model, _said(size), place, extra, source) for name, model in models.items()}
                ratio = f"{found['bfloat16'][0] / found['its float32 copy'][0]:.2f}"
                rows += [(path, version, name, f"{spent:.1f}", computed, ratio) for name, (spent, computed) in found.items()]
                print(rows[-2:], flush=True)
    title, command = ("Computing: processor seconds of one fit of the demo", "bench/run.py compute") if size == "demo" else (
        f"Computing at {size}: processor seconds of one fit", f"-m bench.compute {size}"
    )  # fmt: skip
    show(
        title, ("processor", "version", "weights", "seconds", "computed in", "bfloat16 to copy"), rows,
        f"One thread. Products in float32 and in bfloat16, billions of operations a second: {'; '.join(rates)}. "
        f"`fit {size} {' '.join(_said(size))}`; without units {' '.join(f'{name}={value}' for name, value in SLOW.items())}. "
        f"`MODICUM_EARLIER=EARLIER/src python {command}`.",
    )  # fmt: skip


def _said(size: str) -> tuple[str, ...]:
    """Settings of the fit."""
    return (*WORDS, "--menu", MENU.get(size, "int3,int4,int8"), *READ[size])


def _demo() -> Path:
    from modicum.models.located import DEMO

    return DEMO


def _random(made: Path) -> Path:
    """Random weights of 160 million parameters in bfloat16; the demo's tokens are the first of theirs."""
    import transformers

    from bench.sweep import LARGE, VOCABULARY
    from modicum.testing import random_checkpoint

    config = transformers.LlamaConfig(**LARGE, vocab_size=VOCABULARY, max_position_embeddings=1024, dtype="bfloat16")
    random_checkpoint(made, config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(_demo() / name, made / name)
    return made


def _versions() -> dict[str, str]:
    earlier = os.environ.get("MODICUM_EARLIER")
    return {"now": str(ROOT / "src")} | ({"earlier": earlier} if earlier else {})


def _widened(source: Path, made: Path) -> Path:
    """The same checkpoint with its weights in float32."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, made)
    for file in source.glob("*.safetensors"):
        save_file({name: value.float() for name, value in load_file(file).items()}, made / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
    (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def _environment(extra: dict[str, str], place: Path, source: str = str(ROOT / "src")) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": source, "XDG_CACHE_HOME": str(place / "home"), **extra}


def _fitted(model: Path, read: tuple[str, ...], place: Path, extra: dict[str, str], source: str) -> tuple[float, str]:
    """Processor seconds of one fit, and what its receipt says it computed in."""
    words = (sys.executable, "-m", "modicum", "fit", str(model), "--out", str(place / "out"), "--overwrite", "--json", *read)
    text, spent = _ran(words, _environment(extra, place, source))
    return spent, json.loads(text).get("compute", {}).get("forward", "as stored") if text else "cut off"


def _ran(words: tuple[str, ...], environment: dict[str, str]) -> tuple[str, float]:
    """What a process prints, nothing where it was cut off, and the processor seconds it took."""
    before, text = resource.getrusage(resource.RUSAGE_CHILDREN), ""
    with contextlib.suppress(subprocess.TimeoutExpired):
        text = subprocess.run(
            words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, timeout=LONGEST
        ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return text, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main(*sys.argv[1:])
