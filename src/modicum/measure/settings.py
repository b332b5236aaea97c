"""What measuring and fitting have in common, as the caller asked for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from modicum.core.budget import parse_size
from modicum.core.errors import SettingError, near
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.core.settings import param

# What changes how a run goes, and not what it makes.
_WAYS = {"out", "overwrite", "dry_run", "ram", "device", "workers"}


# Dtypes to compute in; auto: what suits the machine.
COMPUTE = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What measuring and fitting have in common; the same names as on the command line."""

    target: str | None = param(None, "format to write, by its runtime; none: the one that suits the model")
    data: str | None = param(None, "path of a text; none: the texts shipped with modicum")
    text_column: str | None = param(None, "column of the text, where the data is a table; none: found by its name")
    samples: int = param(128, "sequences to calibrate on")
    tokens: int = param(512, "tokens per sequence")
    micro_batch: int = param(8, "sequences run at once")
    test_samples: int = param(64, "sequences to judge on; half as many to choose by")
    menu: tuple[Option, ...] | None = param(None, "options to choose from; none: all that methods declare")
    group: int | None = param(None, "columns per scale for the menu's integers; none: as many as suit each layer's rows")
    ram: int | None = param(None, "bytes of memory to stay within")
    seed: int = param(0, "seed of every choice by chance")
    device: str = param("auto", "where models run and their inputs are measured")
    compute: str = param("auto", "dtype to compute in: auto, float32 or bfloat16; auto: for weights of half precision the faster one here")
    keep: tuple[str, ...] = param((), "patterns of layers to leave as they are")
    harm: str = param("covariance", "how harm is predicted")
    gradient_samples: int = param(16, "sequences to take gradients on")
    search_time: float = param(
        60.0, "seconds to judge plans by real divergences: to learn what harms are worth, to improve the choice; 0: none"
    )
    output: str | Callable[[Any], Any] | None = param(
        None, "what of the model's output is judged: names or places, the main one first; none: all that is no inner state, cache or loss"
    )
    classes: str | None = param(
        None,
        "axis of the classes, independent (labels) or none (values), for one output after the other; none given: what its name and shape tell",
    )
    curvature: bool = param(False, "also measure Hessian traces and top eigenvalues, with the model in memory")
    out: Path | None = param(None, "directory to write")
    overwrite: bool = param(False, "replace the output directory where it exists")
    allow_pickle: bool = param(False, "read pickled weights where there are no safetensors")
    trust_remote_code: bool = param(False, "let the model's directory run code of its own")
    allow_fallback: bool = param(False, "accept solves that needed more damping than asked for")

    def __post_init__(self) -> None:
        from modicum.export import TARGETS
        from modicum.table.harm import HARMS

        if self.target is not None and self.target not in TARGETS:
            raise SettingError(f"target {self.target!r}: is not known. {near(self.target, TARGETS)}")
        if self.harm not in HARMS:
            raise SettingError(f"harm {self.harm!r}: is not known. {near(self.harm, HARMS)}")
        if self.compute not in COMPUTE:
            raise SettingError(f"compute {self.compute!r}: is not known. {near(self.compute, COMPUTE)}")
        for name in ("samples", "tokens", "micro_batch", "test_samples", "gradient_samples"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}: must be at least 1, got {getattr(self, name)}.")

        if not 0 <= self.search_time < float("inf"):
            raise SettingError(f"search_time: must be 0 or more seconds, got {self.search_time}.")

    def fingerprint(self, model_hash: str, data_hash: dict[str, str]) -> str:
        """Hash of everything that decides the result: an interrupted run continues only where it is equal."""
        words = {f.name: str(_plain(getattr(self, f.name))) for f in fields(self) if f.name not in _WAYS}
        return hashlib.sha256(json.dumps([words, model_hash, data_hash], sort_keys=True).encode()).hexdigest()


def common(
    *, menu: Iterable[str | Option] | str | None = None, ram: str | int | None = None, data: Any = None,
    out: str | Path | None = None, keep: Iterable[str] = (), output: Any = None, classes: Any = None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Settings as callers write them, in the types that ``Settings`` holds."""
    output, classes = judged_by(output, classes)
    words = [word for word in menu.split(",") if word.strip()] if isinstance(menu, str) else list(menu or [])
    return {
        **settings,
        "menu": tuple(_menu_option(word, settings.get("group")) for word in words) or None,
        "ram": parse_size(ram) if isinstance(ram, str) else ram,
        "data": str(data) if isinstance(data, str | Path) else None,
        "out": Path(out) if out is not None else None,
        "keep": tuple(keep),
        "output": output,
        "classes": classes,
    }


def judged_by(output: Any, classes: Any) -> tuple[str | Callable[[Any], Any] | None, str | None]:
    """What is judged, as ``Settings`` holds it: of several names or places one text; a function stays one."""
    plain = lambda value: (
        value if value is None or callable(value) else str(value) if isinstance(value, str | int) else ",".join(map(str, value))
    )
    return plain(output), plain(classes)


def _menu_option(word: str | Option, group: int | None) -> Option:
    if isinstance(word, Option):
        return word
    word = word.strip()
    short = word.startswith("int") and word[3:].isdigit()
    return Option.parse(f"{word} group={group}" if short and group is not None else word)


def _plain(value: Any) -> Any:
    if isinstance(value, Plan):
        return [value.target, sorted(value.options.items()), sorted(value.cuts.items())]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else type(value).__qualname__
    return [str(item) for item in value] if isinstance(value, tuple) else value
