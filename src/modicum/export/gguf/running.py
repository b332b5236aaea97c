"""llama.cpp run on one row of tokens, in a process of its own: what goes wrong there ends that alone.

python -m modicum.export.gguf.running FILE THREADS < tokens.json > logits.npy
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

_SECONDS = 600


def installed() -> bool:
    """Whether llama.cpp's binding for Python is there."""
    return importlib.util.find_spec("llama_cpp") is not None


def logits(path: Path, tokens: list[int], threads: int) -> np.ndarray:
    """Logits (tokens, vocabulary) of each token's prediction. Raises ``RuntimeError`` with what llama.cpp said where it fails."""
    command = [sys.executable, "-m", __name__, str(path), str(threads)]
    done = subprocess.run(command, input=json.dumps(tokens).encode(), capture_output=True, timeout=_SECONDS)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(said[-1] if said else f"it ended with {done.returncode}")
    return np.load(io.BytesIO(done.stdout), allow_pickle=False)


def _run(path: str, tokens: list[int], threads: int) -> np.ndarray:
    import llama_cpp as lib

    said: list[str] = []
    heard = lib.llama_log_callback(lambda level, text, data: said.append(text.decode(errors="replace")))
    lib.llama_log_set(heard, ctypes.c_void_p(0))
    wanted = lib.llama_model_default_params()
    wanted.n_gpu_layers = 0
    if hasattr(wanted, "use_extra_bufts"):  # weights packed anew for some processors crash in some versions
        wanted.use_extra_bufts = False
    model = lib.llama_model_load_from_file(path.encode(), wanted)
    if not model:
        raise SystemExit(next((line.strip() for line in reversed(said) if "error" in line), "it cannot load the file"))
    settings = lib.llama_context_default_params()
    settings.n_threads = settings.n_threads_batch = threads
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, len(tokens))
    running = lib.llama_init_from_model(model, settings)
    width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    if not running or lib.llama_decode(running, _batch(lib, tokens)):
        raise SystemExit("it cannot run the file")
    return np.ctypeslib.as_array(lib.llama_get_logits(running), (len(tokens), width)).copy()


def _batch(lib: Any, tokens: list[int]) -> Any:
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    return batch


if __name__ == "__main__":
    found = io.BytesIO()
    np.save(found, _run(sys.argv[1], json.load(sys.stdin), int(sys.argv[2])))
    sys.stdout.buffer.write(found.getvalue())
