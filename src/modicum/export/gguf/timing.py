"""Seconds in llama.cpp, in a process of its own: of its products by type and shape, and of a pass of a file.

python timing.py < asked.json > seconds.json; this file imports nothing of the package, so that such a process begins at once.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

# What is measured is repeated for so many seconds, so often at least and at most; weights of so many bytes are gone round in, as in a model.
_PRODUCT, _PASS, _FEWEST, _REPEATS, _SPREAD = 0.2, 2.0, 5, 50, 64_000_000
# Tokens that llama.cpp takes in at a time by default.
_TAKEN = 2048
_WAITED = 1800


def version() -> str:
    """The version of llama.cpp's binding for Python; nothing where there is none."""
    return metadata.version("llama-cpp-python") if importlib.util.find_spec("llama_cpp") is not None else ""


def product(type: int, rows: int, columns: int, tokens: int, threads: int) -> float:
    """Seconds of a product of inputs (tokens, columns) with a weight (rows, columns) of a type's number.

    Raises ``RuntimeError`` with what was said where that cannot be.
    """
    return _asked({"product": [type, rows, columns, tokens], "threads": threads})


def passed(path: Path, batch: int, context: int, threads: int) -> float:
    """Seconds in which a file takes ``batch`` texts of ``context`` tokens in, and gives what follows each. Raises ``RuntimeError``."""
    return _asked({"path": str(path), "batch": batch, "context": context, "threads": threads})


def _asked(asked: dict[str, Any]) -> float:
    done = subprocess.run([sys.executable, __file__], input=json.dumps(asked).encode(), capture_output=True, timeout=_WAITED)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(said[-1] if said else f"it ended with {done.returncode}")
    return float(json.loads(done.stdout))


class _Params(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("empty", ctypes.c_bool))


def _library(name: str) -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    folder = Path(spec.origin or "").parent / "lib" if spec is not None else Path()
    found = sorted(folder.glob(f"*{name}.so")) or sorted(folder.glob(f"*{name}.dylib")) or sorted(folder.glob(f"*{name}.dll"))
    if not found:
        raise SystemExit(f"llama.cpp's library {name} is not there")
    return ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)


def _product(type: int, rows: int, columns: int, tokens: int, threads: int) -> float:
    base, cpu = _library("ggml-base"), _library("ggml-cpu")
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    for name, given, taken in (
        ("ggml_init", pointer, [_Params]), ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, number, number]),
        ("ggml_row_size", size, [ctypes.c_int, number]), ("ggml_get_data", pointer, [pointer]), ("ggml_nbytes", size, [pointer]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]), ("ggml_new_graph", pointer, [pointer]),
        ("ggml_build_forward_expand", None, [pointer, pointer]),
    ):  # fmt: skip
        function = getattr(base, name)
        function.restype, function.argtypes = given, taken
    cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
    cpu.ggml_cpu_init()
    weight = base.ggml_row_size(type, columns) * rows
    copies = max(1, min(16, _SPREAD // weight))
    room = copies * (weight + 8 * rows * tokens) + 4 * columns * tokens * (_REPEATS + 2) * 2 + 64_000_000
    context = base.ggml_init(_Params(room, None, False))
    inputs = base.ggml_new_tensor_2d(context, 0, columns, tokens)
    ctypes.memset(base.ggml_get_data(inputs), 0x3F, base.ggml_nbytes(inputs))  # 0.75 each
    graph = base.ggml_new_graph(context)
    for _ in range(copies):
        held = base.ggml_new_tensor_2d(context, type, columns, rows)
        ctypes.memset(base.ggml_get_data(held), 0, base.ggml_nbytes(held))
        base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, held, inputs))
    return _fastest(lambda: cpu.ggml_graph_compute_with_ctx(context, graph, threads), _PRODUCT) / copies


def _fastest(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest of several runs, after one to warm up: what others take of the machine is none of what is timed."""
    run()
    found: list[float] = []
    while len(found) < _FEWEST or (sum(found) < seconds and len(found) < _REPEATS):
        begun = time.perf_counter()
        run()
        found.append(time.perf_counter() - begun)
    return min(found)


def _passed(path: str, batch: int, context: int, threads: int) -> float:
    import llama_cpp as lib

    heard = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(heard, ctypes.c_void_p(0))
    wanted = lib.llama_model_default_params()
    wanted.n_gpu_layers = 0
    if hasattr(wanted, "use_extra_bufts"):  # weights packed anew for some processors crash in some versions
        wanted.use_extra_bufts = False
    model = lib.llama_model_load_from_file(path.encode(), wanted)
    if not model:
        raise SystemExit("it cannot load the file")
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max, settings.n_batch = batch * max(64, context), batch, min(_TAKEN, batch * max(64, context))
    settings.n_threads = settings.n_threads_batch = threads
    running = lib.llama_init_from_model(model, settings)
    if not running:
        raise SystemExit("it cannot run the file")
    width = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    places = [(sequence, place) for sequence in range(batch) for place in range(context)]
    pieces = [_batch(lib, places[at : at + settings.n_batch], context, width) for at in range(0, len(places), settings.n_batch)]

    def once() -> None:
        lib.llama_memory_clear(lib.llama_get_memory(running), True)
        for piece in pieces:
            if lib.llama_decode(running, piece):
                raise SystemExit("it cannot run the file")
        lib.llama_synchronize(running)

    return _fastest(once, _PASS)


def _batch(lib: Any, places: list[tuple[int, int]], context: int, width: int) -> Any:
    batch = lib.llama_batch_init(len(places), 0, 1)
    batch.n_tokens = len(places)
    for at, (sequence, place) in enumerate(places):
        batch.token[at], batch.pos[at], batch.logits[at] = (7 * place + sequence) % width, place, place == context - 1
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
    return batch


if __name__ == "__main__":
    given: dict[str, Any] = json.load(sys.stdin)
    if "product" in given:
        kind, rows, columns, tokens = given["product"]
        print(json.dumps(_product(kind, rows, columns, tokens, given["threads"])))
    else:
        print(json.dumps(_passed(given["path"], given["batch"], given["context"], given["threads"])))
