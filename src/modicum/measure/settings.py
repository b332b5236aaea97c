"""What measuring and fitting have in common, as the caller asked for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from modicum import __version__
from modicum.core.budget import parse_size
from modicum.core.errors import SettingError, quoted
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.core.rules import Rule, rules_of
from modicum.core.settings import SEEDS, param, require

# Names that are registered further up, where what they stand for is imported.
TARGETS = ("transformers", "modicum", "vllm", "gguf")
HARMS = ("covariance", "fisher", "hessian", "trace", "error")
_ONE_OR_MORE = (1, float("inf"))
# What changes how a run goes, and not what it makes.
_WAYS = {"out", "overwrite", "dry_run", "ram", "device", "workers", "allow_broken"}


# Dtypes to compute in; auto: what suits the machine.
COMPUTE = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What measuring and fitting have in common; the same names as on the command line."""

    target: str | None = param(
        None, "format to write, by its runtime; by default the one that suits the model, to measure all but vllm and gguf", choices=TARGETS,
        metavar="NAME", group="method",
    )  # fmt: skip
    data: str | None = param(
        None,
        "what to calibrate and judge with: text, CSV, TSV, JSON lines, JSON, Parquet, or a folder of them; a folder of pictures or "
        "recordings for a model that takes those, with metadata.csv (file_name, text) where it reads text too; several sources of text by "
        "commas, with weights as in code/=3,letters.txt=1; self stands for text that the model writes itself, to calibrate on alone. By default the "
        "text shipped with modicum",
        metavar="PATH", group="data",
    )  # fmt: skip
    text_column: str | None = param(
        None, "column of the text in a table: its name, or its number where there is no header; by default found by its name", metavar="NAME",
        group="data",
    )  # fmt: skip
    samples: int = param(128, "sequences to calibrate on", between=_ONE_OR_MORE, metavar="N", group="data")
    tokens: int = param(512, "tokens per sequence", between=_ONE_OR_MORE, metavar="N", group="data")
    micro_batch: int = param(8, "sequences run at once", between=_ONE_OR_MORE, metavar="N", group="machine")
    test_samples: int = param(64, "sequences to judge on; half as many to choose by", between=_ONE_OR_MORE, metavar="N", group="data")
    menu: tuple[Option, ...] | None = param(
        None,
        "options to choose from, by commas, such as int2,int3,int4; by default all that methods declare",
        metavar="OPTIONS",
        group="method",
        several=True,
    )
    group: int | None = param(
        None, "columns per scale for the menu's intN, 0: a row; by default what suits each layer", metavar="N", group="method"
    )
    activations: str | None = param(
        None, "round the inputs of weights too: int8 beside integers of eight bits, fp8 beside float8, int4 beside integers of four bits, mxfp4 "
        "and nvfp4 beside float4 of that format; by default none are", choices=("int8", "fp8", "int4", "mxfp4", "nvfp4"),
        metavar="FORMAT", group="method",
    )  # fmt: skip
    activation_scale: str = param(
        "dynamic", "scale of rounded inputs: dynamic, each token's own; static, one for all, of the largest in calibration",
        choices=("dynamic", "static"), metavar="KIND", group="method",
    )  # fmt: skip
    rotate: str | None = param(
        None, "turn the residual stream into a basis in which no column stands out, gains of norms moved into weights: by a Hadamard or a "
        "random matrix; a norm that forbids it is named; by default it is not turned", choices=("hadamard", "random"), metavar="KIND", group="method",
    )  # fmt: skip
    smooth: float | None = param(
        None, "move how far columns of inputs reach into the weights that read them, with nothing else changed: 0.5 shares it evenly, 1 moves all "
        "of it; by default none is", between=(0, 1), metavar="ALPHA", group="method",
    )  # fmt: skip
    importance: str | None = param(
        None, "let calibration tokens count by importance in what layers are fitted on: attention, by how much of it a token receives in its "
        "block; by default all count alike", choices=("attention",), metavar="KIND", group="method",
    )  # fmt: skip
    starved: str = param(
        "pooled", "what experts that met few tokens are fitted on: pooled, what all experts of their stack met; sent, tokens that go to others",
        choices=("pooled", "sent"), metavar="KIND", group="method",
    )  # fmt: skip
    ram: int | None = param(None, "memory to stay within, such as 4GB", metavar="SIZE", group="machine")
    seed: int = param(0, "seed of every choice by chance", between=SEEDS, metavar="N", group="data")
    device: str = param(
        "auto", "where models run and their inputs are measured: auto or cpu; cuda or cuda:N for a GPU", metavar="NAME", group="machine"
    )
    compute: str = param(
        "auto", "dtype to compute in; auto: for weights of half precision whichever this processor is faster in", choices=COMPUTE,
        metavar="DTYPE", group="machine",
    )  # fmt: skip
    keep: tuple[str, ...] = param((), "leave matching layers as they are; may be repeated", metavar="PATTERN", group="method")
    set: tuple[Rule, ...] = param(
        (), "what holds for matching layers, as 'PATTERN: bits=8 group=32', a method, keep, or an option; may be repeated", metavar="RULE",
        group="method", table=True,
    )  # fmt: skip
    harm: str = param("covariance", "how harm is predicted", choices=HARMS, metavar="NAME", group="method")
    gradient_samples: int = param(16, "sequences to take gradients on", between=_ONE_OR_MORE, metavar="N", group="data")
    search_time: float = param(
        60.0,
        "time to judge plans by real divergences, to learn what harms are worth and to improve the choice, 0: none; near-lossless choices take "
        "none unless this is longer than by default; of fit --from by default 0: the choice is there in seconds",
        between=(0, float("inf")), metavar="SECONDS", group="method",
    )  # fmt: skip
    output: str | Callable[[Any], Any] | None = param(
        None, "what of the output is judged, by name or place, the main one first; by default all of the model's answer", metavar="NAMES",
        group="data", several=True,
    )  # fmt: skip
    classes: str | None = param(
        None, "axis of the classes, independent (labels), or none (values), for one output after the other; by default what name and shape tell",
        metavar="AXIS", group="data", several=True,
    )  # fmt: skip
    curvature: bool = param(False, "also measure Hessian traces and top eigenvalues, with the model in memory", group="method")
    out: Path | None = param(None, "directory to write", metavar="DIR", group="files")
    overwrite: bool = param(False, "replace the output directory where it exists", group="files")
    allow_pickle: bool = param(False, "read pickled weights where there are no safetensors", group="files")
    trust_remote_code: bool = param(False, "let the model's directory run code of its own", group="files")
    allow_quantized_source: bool = param(
        False, "take weights that are quantized already as what they stand for: what is made of them loses twice", group="files"
    )
    allow_fallback: bool = param(False, "accept solves that needed more damping than asked for; the receipt names each", group="method")

    def __post_init__(self) -> None:
        require(self)
        if self.activations is None and self.activation_scale != "dynamic":
            raise SettingError(
                f"activation_scale {self.activation_scale}: must stand beside activations, which were not asked for. Pass --activations int8."
            )
        if self.activations in ("int4", "mxfp4", "nvfp4") and self.activation_scale == "static":
            raise SettingError(
                f"activation_scale static: must be dynamic of {self.activations}, whose runtimes find scales themselves. Leave it out."
            )

    def fingerprint(self, model_hash: str, data_hash: dict[str, str]) -> str:
        """Hash of everything that decides the result, modicum's version with it: an interrupted run continues only where it is equal."""
        words = {f.name: str(_plain(getattr(self, f.name))) for f in fields(self) if f.name not in _WAYS}
        return hashlib.sha256(json.dumps([__version__, words, model_hash, data_hash], sort_keys=True).encode()).hexdigest()


def common(
    *, menu: Iterable[str | Option] | str | None = None, ram: str | int | None = None, data: Any = None,
    out: str | Path | None = None, keep: Iterable[str] = (), set: Any = (), output: Any = None, classes: Any = None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Settings as callers write them, in the types that ``Settings`` holds."""
    output, classes = judged_by(output, classes)
    options = (word if isinstance(word, Option) else Option.parse(word) for word in menu_words(menu, settings.get("group")))
    return {
        **settings,
        "menu": tuple(options) or None,
        "ram": parse_size(ram, "--ram") if isinstance(ram, str) else ram,
        "data": str(data) if isinstance(data, str | Path) else None,
        "out": Path(out) if out is not None else None,
        "keep": tuple(keep),
        "set": rules_of(set),
        "output": output,
        "classes": classes,
    }


def judged_by(output: Any, classes: Any) -> tuple[str | Callable[[Any], Any] | None, str | None]:
    """What is judged, as ``Settings`` holds it: of several names or places one text; a function stays one. Raises ``SettingError``."""
    for name, value in (("output", output), ("classes", classes)):
        if not (value is None or callable(value) or isinstance(value, str | Iterable | int)):
            raise SettingError(f"{name}: must be a name, a place, or several, got {quoted(repr(value), 60)}.")
    plain = lambda value: (
        value if value is None or callable(value) else str(value) if isinstance(value, str | int) else ",".join(map(str, value))
    )
    return plain(output), plain(classes)


def menu_words(menu: Iterable[str | Option] | str | None, group: int | None = None) -> list[str | Option]:
    """Options of a menu, each as text that says its ``group`` where it is short for one."""
    words = [word for word in menu.split(",") if word.strip()] if isinstance(menu, str) else list(menu or [])
    if isinstance(menu, str) and not words:
        raise SettingError(f"menu: must name at least one option, {menu!r} names none. Leave it out for all that methods declare.")
    return [word if isinstance(word, Option) else _long(word.strip(), group) for word in words]


def _long(word: str, group: int | None) -> str:
    short = word.startswith("int") and word[3:].isdigit()
    return f"{word} group={group}" if short and group is not None else word


def _plain(value: Any) -> Any:
    if isinstance(value, Plan):
        return [value.target, sorted(value.options.items()), sorted(value.cuts.items())]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else type(value).__qualname__
    return [str(item) for item in value] if isinstance(value, tuple) else value
