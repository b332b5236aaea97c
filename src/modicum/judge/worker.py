"""Inside a worker: the judge it makes of a recipe, and its answers."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import signal
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Change
from modicum.core.option import KEEP
from modicum.core.plan import Picks, Table
from modicum.data.splits import Batch
from modicum.export import TARGETS
from modicum.export.source import open_source
from modicum.judge.judge import Levels, Part, PlanJudge
from modicum.models.cached import round_cache, rounded_scales
from modicum.models.model import Model
from modicum.models.weights import CheckpointWeights
from modicum.sweep import Script
from modicum.sweep.rehearsal import use_eager_experts
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Findings
from modicum.table.sizing import Sizing
from modicum.work.store import FormStore

_RECIPE = "recipe.pt"


Task = tuple[Picks, int, int]
"""A selection, and the sequences to judge it on: from one to another."""


@dataclass(frozen=True)
class _Recipe:
    """All that a judge is made of, beside the forms in ``levels``; ``source`` is a directory or a file, whose code may be trusted, or a module.

    What stands in the place of a checkpoint's weights are ``values``, and the ``scales`` of a cache that is rounded; ``original`` is another source
    where the model stands in another's place.
    """

    source: Path | nn.Module
    values: Mapping[str, torch.Tensor]
    scales: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    original: Path | nn.Module | None
    turned: Mapping[torch.dtype, torch.dtype]
    trusted: bool
    target: str
    script: Script
    table: Table
    findings: Findings
    levels: Path
    batches: list[Batch]
    causal: bool
    ram: int | None

    def judge(self, folder: Path) -> PlanJudge:
        before, tempfile.tempdir = tempfile.tempdir, str(folder)  # what is left of a worker that is ended goes with the folder
        try:
            original = None if self.original is None else self._computing(self._opened(self.original))
            model = self._opened(self.source)
        finally:
            tempfile.tempdir = before
        if isinstance(model.weights, CheckpointWeights):
            model.weights.adopt(self.values)
            round_cache(model.module, self.scales)
        model = self._computing(model)
        sizing, pool = Sizing(TARGETS[self.target](model, self.script), ()), SpillPool(self.ram, folder)
        levels = MadeLevels(self.levels, folder, sizing, self.findings, pool)
        return PlanJudge(self.table, levels, self.batches, self.causal, original)

    def _opened(self, source: Path | nn.Module) -> Model:
        return open_source(source, trust_remote_code=self.trusted, allow_quantized_source=True)  # it was allowed

    def _computing(self, model: Model) -> Model:
        use_eager_experts(model)
        return model.computing(self.turned)


def write_recipe(judge: PlanJudge, folder: Path, count: int) -> None:
    """Write what ``count`` workers make their judges of. Raises ``SettingError`` for a module that cannot be pickled."""
    levels, target = judge.levels, judge.target
    model, limit = target.model, levels.pool.limit
    # A config that names code of its own was only opened because it is trusted.
    trusted = bool(getattr(model.config, "auto_map", None))
    original = None if judge.original is model else _source(judge.original)
    values = model.stored.weights.adopted if isinstance(model.stored.weights, CheckpointWeights) else {}
    recipe = _Recipe(
        _source(model), values, rounded_scales(model.module), original, dict(model.weights.turned), trusted, target.name, target.script,
        judge.table, levels.findings, levels.store.directory.absolute(), judge.batches, judge.causal, None if limit is None else limit // count,
    )  # fmt: skip
    try:
        torch.save(recipe, folder / _RECIPE)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingError(
            f"workers: {model.name} must be picklable to be sent to others, is not ({error}). Give it as a directory, or pass --workers 1."
        ) from None


def _source(model: Model) -> Path | nn.Module:
    """What a worker opens: the directory where weights are read lazily from it, otherwise the module."""
    weights = model.weights
    return weights.shards.source.absolute() if isinstance(weights, CheckpointWeights) else model.stored.module


class MadeLevels(Levels):
    """Levels that another process makes, and its changes of depth in ``folder``; nothing is written."""

    def __init__(self, directory: Path, folder: Path, sizing: Sizing, findings: Findings, pool: SpillPool):
        super().__init__(directory, sizing, findings, [], pool, 0)
        self.folder = folder

    @override
    def require(self, parts: Iterable[Part]) -> None:
        """Look again where something is missing."""
        if any(part not in self and (part[1] != KEEP or part[2]) for part in parts):
            self.store = FormStore(self.store.directory)

    @override
    def change(self, span: str) -> Change:
        if span not in self._changes:
            self._changes[span] = torch.load(change_path(self.folder, span), weights_only=False)
        return self._changes[span]


def change_path(folder: Path, span: str) -> Path:
    """Where a change of depth waits for workers."""
    return folder / f"{hashlib.sha256(span.encode()).hexdigest()[:16]}.pt"


class Worker:
    """A judge that answers with what it found or with what went wrong."""

    def open(self, folder: Path, threads: int) -> Exception | None:
        """Open the model."""
        torch.set_num_threads(threads)
        try:
            recipe = torch.load(folder / _RECIPE, mmap=True, weights_only=False)
            self.judge = recipe.judge(folder)
        except Exception as error:
            return _sendable(error)
        return None

    def outcome(self, task: Task) -> np.ndarray | Exception:
        """Judge one selection."""
        try:
            return self.judge.rows(*task)
        except Exception as error:
            return _sendable(error)


def _sendable(error: Exception) -> Exception:
    """The error where it survives the way, otherwise its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def serve(pipe: connection.Connection, folder: Path, threads: int) -> None:
    """Answer what comes through the pipe until its other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker()
    with contextlib.suppress(EOFError, OSError):
        pipe.send(worker.open(folder, threads))
        while True:
            pipe.send(worker.outcome(pipe.recv()))
