"""The clock of the target's runtime: what matrix products take on this machine, measured once and kept."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.files import cache_folder, keep_json
from modicum.core.unit import Site
from modicum.models.model import Model
from modicum.runtime.processor import instructions, processor
from modicum.sweep import Script
from modicum.sweep.rehearsal import module_units

FORMAT, VERSION = "modicum-clock", 1
# Instructions for half precision, which torch and oneDNN use where they are.
_UNITS = {"avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "avx_ne_convert", "bf16", "asimdhp"}
# A shape is measured until so many seconds or repeats have passed, after one run to warm up.
_SECONDS, _REPEATS = 0.1, 50
# Bytes of weights gone round in while measuring: in a model each layer's are others, and come from memory.
_SPREAD = 64_000_000

# A pass of a whole model likewise; then as many passes are watched part by part.
_PASS_SECONDS, _PASSES = 2.0, 15

Measure = Callable[[int, int, int, torch.dtype], float]


class Clock:
    """Seconds of linear maps in PyTorch on this machine.

    A shape that was never asked for is measured with ``measure``, and kept in the table at ``path`` (None: kept in memory alone), under the
    processor's name, torch's version and the number of threads. A table that is damaged, or cannot be written, is measured anew.
    """

    def __init__(self, path: Path | None = None, measure: Measure | None = None):
        self.path, self.measure = path, measure or time_linear
        self._table: dict[str, float] | None = None

    def linear(self, rows: int, columns: int, tokens: int, dtype: torch.dtype) -> float:
        """Seconds of ``inputs @ weight.T`` for inputs (tokens, columns) and a weight (rows, columns)."""
        if not rows or not columns or not tokens:
            return 0.0
        key = f"{rows}x{columns} on {tokens} in {str(dtype).removeprefix('torch.')}"
        return self.of(key, lambda: self.measure(rows, columns, tokens, dtype))

    def of(self, key: str, measure: Callable[[], float]) -> float:
        """What is kept under ``key``, else what ``measure`` gives now."""
        if self._table is None:
            self._table = self._read().get(self.machine, {})
        if key not in self._table:
            self._table[key] = measure()
            self._write()
        return self._table[key]

    def known(self) -> dict[str, float]:
        """What is kept of this machine."""
        return self._read().get(self.machine, {})

    @cached_property
    def machine(self) -> str:
        """What times depend on beside the shape: also what of the processor's instructions torch and oneDNN may use."""
        allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "all"
        able = [torch.backends.cpu.get_cpu_capability(), *sorted(_UNITS & instructions()), f"oneDNN {allowed}"]
        return f"{processor()}, {' '.join(able)}, torch {torch.__version__}, {torch.get_num_threads()} threads"

    def _read(self) -> dict[str, dict[str, float]]:
        """Every machine's table; entries that are no times are left out."""
        try:
            body = json.loads(self.path.read_text(encoding="utf-8")) if self.path is not None else None
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(body, dict) or body.get("format") != FORMAT or body.get("version") != VERSION:
            return {}
        machines = body.get("machines")
        tables = machines if isinstance(machines, dict) else {}
        return {
            name: {key: value for key, value in table.items() if _is_time(value)}
            for name, table in tables.items()
            if isinstance(table, dict)
        }

    def _write(self) -> None:
        """Add this machine's entries to the table in one step; what others wrote meanwhile stays."""
        if self.path is None:
            return
        assert self._table is not None
        tables = self._read()
        tables[self.machine] = {**tables.get(self.machine, {}), **self._table}
        body = {"format": FORMAT, "version": VERSION, "machines": tables}
        keep_json(self.path, body)  # a home that cannot be written costs measuring again


def default_path() -> Path:
    """Where the table is kept: the user's cache folder."""
    return cache_folder() / "clock.json"


def time_linear(rows: int, columns: int, tokens: int, dtype: torch.dtype) -> float:
    """Median seconds of one linear map, each time with another weight."""
    copies = max(1, min(16, _SPREAD // (rows * columns * dtype.itemsize)))
    chance = torch.Generator().manual_seed(0)
    inputs = torch.randn(tokens, columns, generator=chance).to(dtype)
    weights = [torch.randn(rows, columns, generator=chance).to(dtype) for _ in range(copies)]
    turn = iter(range(10**9))
    return statistics.median(timed(lambda: torch.nn.functional.linear(inputs, weights[next(turn) % copies])))


@torch.no_grad()
def timed(run: Callable[[], Any], *, seconds: float = _SECONDS, repeats: int = _REPEATS) -> list[float]:
    """Seconds of each run, after one to warm up, until ``seconds`` or ``repeats`` have passed.

    At least three runs, or one where three would take more than ten times ``seconds``.
    """
    begun = time.perf_counter()
    run()
    warm = time.perf_counter() - begun
    fewest = 3 if 3 * warm <= 10 * seconds else 1
    found: list[float] = []
    while len(found) < fewest or (sum(found) < seconds and len(found) < repeats):
        begun = time.perf_counter()
        run()
        found.append(time.perf_counter() - begun)
    return found


def watch(
    model: Model, script: Script, run: Callable[[], Any], cuts: Iterable[Site] = (), *, seconds: float = _PASS_SECONDS
) -> Watched:  # fmt: skip
    """What a pass of a model, ``run``, takes in all, and what each of its units and blocks takes of that: medians over passes.

    Passes are repeated for about ``seconds``, and again with every part on the clock.
    """
    return _Watch(model, script, cuts).passes(run, seconds)


@dataclass
class Watched:
    """One pass of a model: its seconds; those of each unit, of each block, and by consumer of a coupled cut those between its units (attention,
    activation functions); and the most tokens that a unit meets in one call.
    """

    seconds: float
    units: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, float] = field(default_factory=dict)
    between: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


class _Watch:
    """Clocks every call of units, stacks of experts and blocks."""

    def __init__(self, model: Model, script: Script, cuts: Iterable[Site]):
        self.model, self.script, self.cuts = model, script, list(cuts)
        self.units = module_units(model)
        self.calls: list[tuple[str, float, float]] = []  # of one pass: who, from, to
        self.tokens: dict[str, int] = {}
        self._begun: dict[str, float] = {}

    def passes(self, run: Callable[[], Any], seconds: float) -> Watched:
        """Median times of each part over several passes, brought to what a pass takes unwatched."""
        unwatched = statistics.median(timed(run, seconds=seconds, repeats=_PASSES))
        found: list[dict[str, float]] = []

        def watched() -> None:
            self.calls = []
            run()
            found.append(self._spent() | {f"between {site.axes[-1].unit}": self._between(site) for site in self.cuts})

        with self._open():
            whole = statistics.median(timed(watched, seconds=seconds, repeats=_PASSES))
        names = {name for spent in found for name in spent}
        usual = {name: statistics.median(spent.get(name, 0.0) for spent in found[1:]) for name in names}
        return self._summary({name: value * unwatched / whole for name, value in usual.items()}, unwatched)

    def _spent(self) -> dict[str, float]:
        spent: dict[str, float] = {}
        for name, begun, ended in self.calls:
            spent[name] = spent.get(name, 0.0) + ended - begun
        return spent

    def _between(self, site: Site) -> float:
        """Seconds from the first producer of a cut to its consumer, outside all units."""
        begun = {name: start for name, start, _ in self.calls}
        start = min((begun[unit.module] for unit in site.units[:-1] if unit.module in begun), default=math.inf)
        stop = begun.get(site.units[-1].module, 0.0)
        inside = sum(ended - begun for name, begun, ended in self.calls if name in self.units and begun >= start and ended <= stop)
        return max(0.0, stop - start - inside)

    @contextmanager
    def _open(self) -> Iterator[None]:
        modules = dict(self.model.module.named_modules())
        handles: list[Any] = []
        for name in dict.fromkeys((*self.units, *self.script.stacks, *self.model.blocks)):
            if name in modules:
                handles.append(modules[name].register_forward_pre_hook(self._enter(name), with_kwargs=True))
                handles.append(modules[name].register_forward_hook(self._leave(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable:
        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            got = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), torch.empty(0))
            self.tokens[name] = max(self.tokens.get(name, 1), got.numel() // max(1, got.shape[-1]))
            self._begun[name] = time.perf_counter()

        return enter

    def _leave(self, name: str) -> Callable:
        def leave(*_: object) -> None:
            self.calls.append((name, self._begun[name], time.perf_counter()))

        return leave

    def _summary(self, spent: Mapping[str, float], seconds: float) -> Watched:
        """Times by unit; experts share their stack's by their sizes, and a tied weight has that of all its modules."""
        found = Watched(seconds, blocks={name: spent.get(name, 0.0) for name in self.model.blocks})
        found.between = {site.axes[-1].unit: spent[f"between {site.axes[-1].unit}"] for site in self.cuts}
        for module, unit in self.units.items():
            found.units[unit.name] = found.units.get(unit.name, 0.0) + spent.get(module, 0.0)
            found.tokens[unit.name] = max(found.tokens.get(unit.name, 1), self.tokens.get(module, 1))
        for stack in self.script.stacks:
            experts = [unit for unit in self.model.units.values() if unit.kind == "expert" and unit.module == stack]
            total = sum(unit.size for unit in experts)
            found.units |= {unit.name: spent.get(stack, 0.0) * unit.size / total for unit in experts}
        return found


def _is_time(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) and value > 0
