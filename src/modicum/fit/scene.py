"""What a run works on: its subject and request, the target it writes for, and the processes that share the work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from modicum.core.errors import SettingError
from modicum.core.log import LOG
from modicum.core.option import Option
from modicum.core.unit import Site
from modicum.data.splits import Splits
from modicum.drop._family import Dropper
from modicum.export import Target
from modicum.export.gguf import running
from modicum.fit.request import Request
from modicum.measure.cache import cached
from modicum.measure.computing import agreed
from modicum.measure.measured import Measured
from modicum.measure.subject import Subject
from modicum.models.model import Model
from modicum.runtime.targets import RUNTIMES
from modicum.sweep import Script
from modicum.sweep.ranks import LONE, Ranks
from modicum.table.menu import Menu, offered
from modicum.table.taking import rounds_inputs
from modicum.work.workdir import WorkDir


@dataclass(frozen=True)
class Scene:
    """What stands before anything is done; ``measured`` where the findings come from a measurement."""

    subject: Subject
    request: Request
    target: Target
    measured: Measured | None = None
    ranks: Ranks = LONE

    @classmethod
    def open(
        cls, source: str | Path | nn.Module | Model, request: Request, batches: Any = None, measured: Measured | None = None,
        ranks: Ranks = LONE, place: WorkDir | None = None,
    ) -> Scene:  # fmt: skip
        """Open the subject, or that of a measurement, and its target; a run begun in ``place`` goes on as it began. Raises the errors of each."""
        if measured is not None:
            subject = measured.open(source, request, place, ranks, choosing=request.budget is not None and not request.dry_run)
        else:
            subject = Subject.open(source, request, batches, settle=agreed(request, place, ranks))
        subject.check_kept()
        _check_device(subject.model, request)
        _check_timed(request)
        ranks.share(subject.data.calibration)
        name = _target_name(subject, request)
        if measured is None and not request.dry_run and request.budget is not None:
            subject.most = _most(subject, request, name)
        if subject.most is not None and request.plan is None:
            subject.rounding = ranks.first("scouted", lambda: subject.scouted(name))
        _keep_cache(subject, request, name, ranks)
        scene = cls(subject, request, subject.target(name), measured, ranks)
        if request.plan is None:
            subject.check_rules(name, scene.menu)
        if why := scene.target.mixture(scene.options):
            raise SettingError(
                f"target {name}: must be able to hold what a plan may have side by side, cannot: {why}. Pass --target modicum."
            )
        if request.plan is None and request.method is None:
            _check_taking(scene)
        LOG.info("%s for target %s; computed in %s: %s", subject.model.name, name, subject.compute.forward, subject.compute.why)
        if measured is not None:
            measured.check(subject, name if request.budget is not None else None)
        return scene

    @property
    def model(self) -> Model:
        """The original."""
        return self.subject.model

    @property
    def data(self) -> Splits:
        """The sequences of all parts."""
        return self.subject.data

    @property
    def script(self) -> Script:
        """What the rehearsal saw."""
        return self.subject.script

    @cached_property
    def sites(self) -> list[Site]:
        """What the target chooses for."""
        return list(self.target.sites())

    @property
    def options(self) -> Iterable[Option]:
        """Every option that the run may apply."""
        if self.request.plan is not None:
            return [Option.parse(text) for text in self.request.plan.options.values()]
        of_layers = self.menu.with_rules(self.sites)
        return of_layers if self.method is None else [self.method, *of_layers]

    @cached_property
    def method(self) -> Option | None:
        """The one method that is asked for, with its inputs as the request says. Raises ``SettingError`` where they do not go together."""
        method, taking = self.request.method, self.subject.taking
        return method if method is None or taking is None else taking.method(method)

    @cached_property
    def menu(self) -> Menu:
        """What may be chosen: the target's menu, or the one method that is asked for; under rules by layer."""
        method = self.method
        if method is None:
            return self.subject.menu(self.target.name)
        return self.subject.ruled(Menu([Option(tuple(step for step in method.steps if not isinstance(step, Dropper)))]))


def _most(subject: Subject, request: Request, name: str) -> int | None:
    """Bytes that the menu need only serve, where a budget of bytes alone has no room for the model as it is."""
    assert request.budget is not None
    most = request.budget.only_bytes(subject.model.parameters)
    if most is None or request.uniform:
        return most
    return most if subject.target(name).layout({}, {}, frozenset()).nbytes() > most else None


def _keep_cache(subject: Subject, request: Request, name: str, ranks: Ranks) -> None:
    """Let the target hold a model whose keys and values are in eight bits, where that is asked for. Raises ``SettingError`` where it cannot."""
    if request.kv is None:
        return
    if not subject.target(name).caches:
        raise SettingError(
            f"kv {request.kv}: must stand beside --target transformers or vllm, whose loaders round a cache, stands beside {name}."
        )
    if request.kv == "auto" and name != "vllm":
        raise SettingError(
            f"kv auto: must stand beside --target vllm, whose cache it makes smaller, stands beside {name}. Pass --kv fp8, or none."
        )
    if request.kv == "auto" and ranks.count > 1:
        raise SettingError(f"kv auto: must be settled by one process, {ranks.count} came. Pass --kv fp8, or leave it out.")
    if not request.dry_run:
        other, lost, told = cached(subject.model, subject.script, subject.data.calibration, subject.compute)
        subject.take(subject.target(name).over(other))
        subject.model.notes += told if request.kv != "auto" else []  # what is settled of it is told then
        subject.lost, subject.rounding_cache = subject.lost + lost, lost


def _check_taking(scene: Scene) -> None:
    """Raise ``SettingError`` where inputs are to be rounded and the target rounds none of them."""
    if scene.subject.taking is None:
        return
    held = (option for site in scene.sites for option in offered(scene.target, site, scene.menu).values())
    if any(map(rounds_inputs, held)):
        return
    raise SettingError(
        f"activations {scene.request.activations}: target {scene.target.name} rounds no inputs of this model. Pass --target transformers, vllm "
        "or modicum, or leave it out."
    )


def _check_device(model: Model, request: Request) -> None:
    """Raise ``SettingError`` for what is done by processors alone."""
    budget, device = request.budget, model.weights.device
    if device.type == "cpu":
        return
    if request.workers != "1":
        raise SettingError(f"workers: must be 1 on --device {device}, which they would share, got {request.workers}. Leave it out.")
    if budget is not None and (budget.speed or budget.latency):
        raise SettingError(f"budget {budget}: is timed on the processor, cannot be with --device {device}. Use --device cpu.")


def _check_timed(request: Request) -> None:
    """Raise ``SettingError`` for a time in a runtime that is not run here."""
    budget = request.budget
    if request.target not in RUNTIMES or budget is None or not (budget.speed or budget.latency):
        return
    if request.target != "gguf":
        raise SettingError(
            f"budget {budget}: is timed in PyTorch, where target {request.target} does not run. Use --size, --memory or --macs."
        )
    if not running.installed():
        raise SettingError(f"budget {budget}: is timed in llama.cpp, which is not there. Run: pip install llama-cpp-python, or use --size.")


def _target_name(subject: Subject, request: Request) -> str:
    plan = request.plan
    if plan is not None and request.target in (None, plan.target):
        return plan.target
    return request.target or subject.default_target
