"""What a report of a fault needs to know of where it happened: versions, system, processor, memory, accelerators; nothing of whose it is.

No path, no name of a user or of the machine: of a variable that holds a path only that it is set is told.
"""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

import modicum
from modicum.core.errors import quoted
from modicum.core.memory import free_memory, group_limit
from modicum.runtime.processor import instructions, processor

_PACKAGES = (
    "torch", "transformers", "compressed-tensors", "safetensors", "numpy", "scipy", "greenlet", "click", "rich", "jinja2", "matplotlib",
    "filelock", "psutil", "threadpoolctl", "tokenizers", "huggingface-hub",
)  # fmt: skip
# Kinds of instructions that decide how fast products are, of the dozens that a processor names.
_TELLING = re.compile(r"avx|amx|fma|f16c|sse4_2|neon|asimd|sve|bf16|i8mm")
# Variables that change what a run does or how fast it is.
_VARIABLES = re.compile(
    r"(OMP|MKL|GOMP|KMP|OPENBLAS|ATEN|ONEDNN|DNNL|TORCH|PYTORCH|CUDA|NCCL|GLOO|HIP|ROCR|XLA|HF|TRANSFORMERS|THP|RAY)_\w+|"
    r"PYTHON(HASHSEED|PATH|WARNINGS|OPTIMIZE|MALLOC)|WORLD_SIZE|RANK|LOCAL_(RANK|WORLD_SIZE)|LD_PRELOAD|XDG_CACHE_HOME|TMPDIR|MALLOC_\w+|LANG|LC_ALL"
)
# Values that say nothing of whose machine it is: numbers, switches, names of instructions, lists of them.
_PLAIN = re.compile(
    r"[-+.,:;=%\d]*|true|false|yes|no|on|off|auto|passive|active|default|all|lazy|c|posix|(avx|sse|amx)\w*|[a-z]{2}_[a-z]{2}\.utf-?8",
    re.IGNORECASE,
)
_SET = "set"
# What the time of a product is kept under (``runtime/compute.py``, ``runtime/clock.py``).
_PRODUCT = re.compile(r"(?:(\w+) )?(\d+)x(\d+) on (\d+) in (\w+)")


def environment() -> dict[str, Any]:
    """Everything, as a JSON value; what cannot be had is None, and torch that cannot be imported says why."""
    return {
        "modicum": {"version": modicum.__version__, "commit": _commit()},
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: _version(name) for name in _PACKAGES}, "extras": _extras(), "system": _system(),
        "processor": {"name": processor(), "machine": platform.machine(), "cores": os.cpu_count(), "usable": _usable(),
                      "instructions": sorted(kind for kind in instructions() if _TELLING.search(kind))},
        "memory": {"total": psutil.virtual_memory().total, "free": free_memory(), "group_limit": group_limit()},
        "torch": _torch(), "variables": _variables(),
    }  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that runs, with ``changed`` where files that are tracked differ from it; None where nothing tells."""
    root = Path(modicum.__file__).parents[2]
    if (root / ".git").exists() and (root / "src" / "modicum").is_dir():
        head, changes = (_git(root, *words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
        return f"{head}{', changed' if changes else ''}" if head else None
    try:
        told = json.loads(metadata.distribution("modicum").read_text("direct_url.json") or "{}")
        return str(told["vcs_info"]["commit_id"])
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return None


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _extras() -> dict[str, dict[str, str | None]]:
    """Packages of each extra with their versions, None where one is not installed."""
    found: dict[str, dict[str, str | None]] = {}
    try:
        asked = metadata.requires("modicum") or []
    except metadata.PackageNotFoundError:
        return found
    for words in asked:
        name, extra = re.match(r"[\w.-]+", words), re.search(r"""extra\s*==\s*['"]([^'"]+)""", words)
        if name and extra and extra[1] not in ("test", "fuzz"):
            found.setdefault(extra[1], {})[name[0]] = _version(name[0])
    return found


def _system() -> str:
    """The system's name and version, its distribution, and its C library."""
    parts = [f"{platform.system()} {platform.release()}"]
    with contextlib.suppress(OSError, KeyError, AttributeError):
        parts.append(platform.freedesktop_os_release()["PRETTY_NAME"])
    return ", ".join([*parts, " ".join(platform.libc_ver())]).rstrip(", ")


def _usable() -> int | None:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _torch() -> dict[str, Any]:
    """What torch found here: the instructions it uses, threads, accelerators, and times of products that earlier runs kept."""
    try:
        import torch
    except Exception as error:  # a broken installation is what the report may be about
        return {"error": f"torch cannot be imported ({type(error).__name__}: {_impersonal(quoted(error))})"}
    return {
        "capability": torch.backends.cpu.get_cpu_capability(), "onednn": torch.backends.mkldnn.is_available(),
        "threads": torch.get_num_threads(), "interop_threads": torch.get_num_interop_threads(), "cuda": torch.version.cuda,
        "accelerators": list(_accelerators()), "rates": _rates(),
    }  # fmt: skip


def _accelerators() -> Iterator[str]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            told = torch.cuda.get_device_properties(index)
            yield f"{told.name}, {told.total_memory} bytes, capability {told.major}.{told.minor}"
    for kind in ("mps", "xpu"):
        if getattr(getattr(torch, kind, None), "is_available", lambda: False)():
            yield kind


def _rates() -> dict[str, float]:
    """Billions of operations a second of the products that were timed on this machine, by kind, shape and dtype."""
    from modicum.runtime.clock import Clock, default_path

    clock = Clock(default_path())
    found = {}
    for key, seconds in clock.known().items():
        if timed := _PRODUCT.fullmatch(key):
            rows, columns, tokens = map(int, timed.groups()[1:4])
            found[key] = 2e-9 * rows * columns * tokens / seconds
    return found


def _variables() -> dict[str, str]:
    """Variables that matter and are set; of values that might tell whose machine it is, only that."""
    found = {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name) and "TOKEN" not in name}
    return {name: value if _PLAIN.fullmatch(value) else _SET for name, value in found.items()}


def _impersonal(text: str) -> str:
    """A sentence without the paths in it."""
    return re.sub(r"""(?:[A-Za-z]:)?[\\/][^\s'"]*""", "…", text)
