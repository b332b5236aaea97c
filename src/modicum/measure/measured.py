"""A measurement on disk: harms and the sequences it was taken on, from which any budget, target or subset of the menu is served."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.arguments import checked
from modicum.core.config import NAME as CONFIG
from modicum.core.config import configured, write_config
from modicum.core.errors import ModelError, SettingError
from modicum.core.files import read_json, write_json
from modicum.core.finite import finite
from modicum.core.option import Option
from modicum.core.progress import Quiet
from modicum.core.tensorfile import TensorFile
from modicum.core.tensorwriter import TensorWriter
from modicum.core.unit import Site
from modicum.data.splits import PARTS, Batch, Splits
from modicum.drop.experts import expert_sites
from modicum.export import Target
from modicum.judge.judge import Levels, too_slow
from modicum.measure import coupled, felt
from modicum.measure.asked import asked
from modicum.measure.computing import agreed
from modicum.measure.meta import DECIDED, FILE, FORMAT, VERSION, no_measurement, read_meta, require_decided
from modicum.measure.settings import Settings, common
from modicum.measure.subject import Subject, opened
from modicum.measure.survey import Survey
from modicum.models.evaluating import evaluating
from modicum.models.model import Model
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Findings
from modicum.table.menu import everything, offered, under_rules
from modicum.work.meter import Meter
from modicum.work.workdir import MEASURING, WorkDir, beside, read_from

_FINDINGS, _TOKENS, _FELT = "findings.json", "sequences.safetensors", "felt.safetensors"
# What is made of the opened model before anything is measured, by running it.
_CHANGING = ("rotate", "smooth", "importance")


@dataclass
class Measured:
    """What ``measure`` wrote in ``directory``: ``meta`` as JSON, findings, and the sequences of all three parts."""

    directory: Path
    meta: dict[str, Any]
    findings: Findings
    source: Any = field(default=None, repr=False)

    @classmethod
    def read(cls, directory: str | Path) -> Measured:
        """Read a measurement. Raises ``SettingError`` for anything else."""
        directory = Path(directory)
        try:
            meta = read_meta(directory)
            if meta["hash"] != _hash(directory, meta):
                raise ValueError("not as it was written")
            findings = Findings.from_json(read_json(directory / _FINDINGS))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise no_measurement(directory, error) from None
        return cls(directory, meta, findings)

    @cached_property
    def splits(self) -> Splits:
        """The sequences, in their batches. Raises ``ModelError`` where the file is damaged."""
        parts: dict[str, dict[int, dict[str, torch.Tensor]]] = {part: {} for part in PARTS}
        with TensorFile(self.directory / _TOKENS) as file:
            for name in file.entries:
                part, index, key = (*name.split(".", 2), "", "")[:3]
                if part not in parts or not (index.isascii() and index.isdigit()) or not key:
                    raise ModelError(f"{self.directory / _TOKENS}: holds {name!r}, which no measurement has. Measure again.")
                parts[part].setdefault(int(index), {})[key] = file.read(name)
        calibration, validation, test = ([_batch(found[index]) for index in sorted(found)] for found in parts.values())
        said = self.meta["data"]
        return Splits(calibration, validation, test, said["source"], tuple(said["notes"]), said["hashes"], said.get("taken", {}))

    def felt(self, model: Model) -> dict[str, torch.Tensor]:
        """How much the output feels what is looked up in each table (columns, columns); older measurements do not tell. Raises ``SettingError``."""
        try:
            if not self.meta.get("felt"):
                return {}
            with TensorFile(self.directory / _FELT) as file:
                found = {name: file.read(name) for name in file.entries}
            if bad := next(
                (name for name, value in found.items() if value.shape != 2 * model.units[name].shape[1:] or not finite(value)), ""
            ):
                raise ValueError(f"{bad}: must be a finite square, is not")
        except (KeyError, ValueError, ModelError) as error:
            raise no_measurement(self.directory, error) from None
        return found

    def adopt(self, settings: dict[str, Any], menu: Any, data: Any, model: Any) -> tuple[dict[str, Any], Any, Any, Any]:
        """Settings of a fit from this measurement. Raises ``SettingError`` where the caller wants what was measured otherwise."""
        said = self.meta["settings"]
        require_decided(self.directory, said, settings | {"data": data})
        # The choice is there in seconds, unless time to search is asked for, or an allocator that may need it.
        quick = {} if settings.get("allocator") else {"search_time": 0.0}
        adopted = quick | {name: said[name] for name in (*DECIDED, "set") if name != "data" and name in said} | settings
        if adopted.get("target") is None and len(self.meta["targets"]) == 1:
            adopted["target"] = self.meta["targets"][0]
        model = model if model is not None else self.source if self.source is not None else self.meta["model"]["source"]
        if model is None:
            raise SettingError(f"measurement {self.directory}: was taken of a module in memory. Give it again as the model.")
        return adopted, menu if menu is not None else self.meta["menu"], said["data"], model

    def open(
        self, source: Any, settings: Settings, place: WorkDir | None = None, ranks: Ranks = LONE, *, choosing: bool = False
    ) -> Subject:
        """The model with the sequences it was measured on; ``choosing`` needs no more of it until the subject is confirmed.

        Raises ``SettingError`` where it is another, or has changed since.
        """
        model = opened(source, settings)
        if model.hash() != self.meta["model"]["hash"]:
            raise SettingError(f"{model.name}: must be the model that was measured, is not or has changed. Measure again.")
        settle = agreed(settings, place, ranks, self.meta.get("compute"))
        alone = choosing and self.meta.get("alone", False) and not any(map(settings.__getattribute__, _CHANGING))
        subject = Subject.open(model, settings, None, self.splits, settle, alone)
        if "cuts" in self.meta:  # older ones kept none
            subject.cuts = self.cuts(subject.model) | expert_sites(subject.model, subject.script)
        subject.script.raised, subject.script.felt = felt.read(self.findings.raised), self.felt(subject.model)
        subject.script.feels &= self.findings.solves_tables
        return subject

    def cuts(self, model: Model) -> dict[str, Site]:
        """The coupled cuts that were found in the model; none where they were not looked for. Raises ``SettingError`` for what it cannot have."""
        try:
            return coupled.read(self.meta.get("cuts", ()), model.units)
        except (KeyError, ValueError, TypeError) as error:
            raise no_measurement(self.directory, error) from None

    def check(self, subject: Subject, target: str | None = None) -> None:
        """Raise ``SettingError`` where an option, or a ``target`` to choose for, was not measured."""
        wanted = {str(option) for option in subject.settings.menu or ()}
        known = self._known(subject.settings.group) if self.meta["menu"] is None else set(self.meta["menu"])
        if strange := sorted(wanted - known - {"keep"}):
            raise SettingError(f"menu: {strange[0]!r} was not measured. Measure again with it on the menu.")
        if target is not None:
            self._check_target(subject.target(target), subject.menu(target), subject.settings.menu is not None)

    def _known(self, group: int | None) -> set[str]:
        """Texts of the default menu: of a group, or with all those that were measured."""
        measured = {text for options in self.findings.units.values() for text in options} if group is None else set()
        return measured | {str(option) for option in everything(group)}

    def _check_target(self, target: Target, menu: Sequence[Option], asked: bool) -> None:
        if target.name not in self.meta["targets"]:
            raise SettingError(f"target {target.name}: was not measured, {' and '.join(self.meta['targets'])} was. Measure again for it.")
        under = [site for site in target.sites() if under_rules(menu, site)]
        for site in under:
            options = list(offered(target, site, menu))
            if not any(self.findings.know(site, text) for text in options):
                raise SettingError(f"set: {options[0]!r} was not measured on {site.name}. Measure again with the same --set.")
        missing = self._missing(target, menu, [site for site in target.sites() if site not in under])
        if missing and (self.meta["menu"] is not None or asked):
            raise SettingError(f"menu: {missing[0]!r} was not measured for target {target.name}. Measure again with it on the menu.")

    def missing(self, target: Target, menu: Sequence[Option]) -> list[str]:
        """Options of a menu that were not measured on all sites that a target offers them on: an earlier version's default menu was shorter."""
        return self._missing(target, menu, target.sites())

    def _missing(self, target: Target, menu: Sequence[Option], sites: Iterable[Site]) -> list[str]:
        offers = [(site, text) for site in sites for text in offered(target, site, menu)]
        return list(dict.fromkeys(text for site, text in offers if not self.findings.know(site, text)))


@checked(names=[field.name for field in fields(Settings)], but=("model", "data"))
@configured(Settings)
def measure(
    model: str | Path | nn.Module | Model, *, out: str | Path, data: Any = None, menu: Iterable[Any] | str | None = None,
    ram: str | int | None = None, keep: Iterable[str] = (), progress: Quiet | None = None, ranks: Ranks = LONE,
    config: str | Path | None = None, **settings: Any,
) -> Measured:  # fmt: skip
    """Measure ``model`` once, for any budget: harms of every option on every site, into the directory ``out``.

    ``model``, ``data``, ``menu``, ``ram``, ``keep``, ``ranks`` and ``config`` as for ``fit``; other settings: see ``Settings``. Without
    ``target`` every target that can hold the model is measured for. Interrupted, the same call continues from ``OUT.partial``. What stays on
    disk: harms, and the sequences of all three parts. Raises ``ModicumError`` kinds.
    """
    request = Settings(**common(menu=menu, ram=ram, data=data, out=out, keep=keep, **settings))
    if callable(request.output):
        raise SettingError("output: must be names or places in what measure keeps on disk, a function came. Name the outputs.")
    place = WorkDir(Path(out), MEASURING, request.overwrite, read_from(model, request.data))
    ranks.first("out", place.check)
    place = WorkDir(beside(place.out, ranks.rank), place.kind, place.overwrite, place.inputs)
    with evaluating(model if isinstance(model, nn.Module) else None):
        return _measure(model, request, data, place, progress or Quiet(), ranks)


def _measure(source: Any, request: Settings, data: Any, place: WorkDir, progress: Quiet, ranks: Ranks) -> Measured:
    batches = None if data is None or isinstance(data, str | Path) else data
    meter = Meter()
    with meter.stage("open"):
        subject = Subject.open(source, request, batches, settle=agreed(request, place, ranks))
        subject.check_kept()
        ranks.share(subject.data.calibration)
    targets = [request.target] if request.target is not None else subject.possible_targets()
    menus = {name: subject.menu(name) for name in targets}
    for name, menu in menus.items():
        subject.check_rules(name, menu)
    pool = subject.plan_memory([option for name, menu in menus.items() for option in menu.with_rules(subject.target(name).sites())], ranks)
    with place.held():
        partial = pool.directory = place.begin(
            ranks.agreed(request.fingerprint(subject.model.hash(), subject.data.hashes)), subject.compute.to_json()
        )  # fmt: skip
        if ranks.leads:
            place.forget_ranks(ranks.count)
        survey = Survey(subject, targets, partial / "measure", pool, meter, progress, ranks, plain=True)
        levels = _levels(subject, targets, partial / "levels", pool)
        reason = ranks.first("search", lambda: _unjudged(subject, pool))
        findings = survey.run(None if reason else levels)
        findings.events += [event for event in subject.memory.events if event not in findings.events]
        if reason and not findings.scales:
            findings.events.append(f"scales: left out, {reason}; harms stand as predicted. Pass a longer --search-time.")
        said = asked(request, model=source, data=data)
        known = ranks.first("measured", lambda: _written(place, findings, subject, _meta(subject, source, targets, meter), said))
        if not ranks.leads:
            place.discard()
    known.source = None if isinstance(source, str | Path) else source
    return known


def _unjudged(subject: Subject, pool: SpillPool) -> str:
    """Why no plans are judged; nothing where they are."""
    seconds = subject.settings.search_time
    return too_slow(subject.model, subject.script, subject.data.validation[0], seconds, pool) if seconds else "no time was given"


def _written(place: WorkDir, findings: Findings, subject: Subject, meta: dict[str, Any], said: dict[str, Any]) -> Measured:
    final = place.partial / "final"
    shutil.rmtree(final, ignore_errors=True)
    final.mkdir()
    write_json(final / _FINDINGS, findings.to_json())
    _write_sequences(final / _TOKENS, subject.data)
    if meta["felt"]:
        _write_tensors(final / _FELT, subject.script.felt)
    write_json(final / FILE, meta | {"hash": _hash(final, meta)})
    write_config(final / CONFIG, said)
    place.finish(final)
    return Measured.read(place.out)


def _levels(subject: Subject, targets: list[str], directory: Path, pool: SpillPool) -> Levels:
    """Where forms wait to be judged; the target that holds most kinds of option tells what each kind costs."""
    target = "modicum" if "modicum" in targets else targets[0]
    return Levels(
        directory, subject.sizing(target), Findings(), subject.data.calibration, pool, subject.settings.seed, subject.data.validation
    )


def _meta(subject: Subject, source: Any, targets: list[str], meter: Meter) -> dict[str, Any]:
    settings, data, experts = subject.settings, subject.data, expert_sites(subject.model, subject.script)
    said = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in DECIDED}
    said |= {"set": [str(rule) for rule in settings.set]} if settings.set else {}
    cuts = [site for name, site in vars(subject).get("cuts", {}).items() if name not in experts]
    return {
        "format": FORMAT, "version": VERSION,
        "model": {"name": subject.model.name, "source": str(source) if isinstance(source, str | Path) else None, "hash": subject.model.hash(),
                  "parameters": subject.model.parameters, "bytes": subject.model.dense_bytes},
        "targets": targets, "menu": None if settings.menu is None else [str(option) for option in settings.menu], "settings": said,
        "data": {"source": data.source, "notes": list(data.notes), "hashes": data.hashes, "taken": data.taken}, "stages": meter.stages,
        "compute": subject.compute.to_json(), "felt": sorted(subject.script.felt),
        "alone": not subject.script.in_turn,
    } | ({"cuts": coupled.told(cuts)} if "cuts" in vars(subject) else {})  # fmt: skip


def _hash(directory: Path, meta: dict[str, Any]) -> str:
    """Tells whether a measurement is as it was written."""
    said = json.dumps({key: value for key, value in meta.items() if key != "hash"}, sort_keys=True)
    digest = hashlib.sha256(said.encode())
    for name in (_FINDINGS, _TOKENS, *([_FELT] if meta.get("felt") else [])):
        digest.update((directory / name).read_bytes())
    return digest.hexdigest()


def _write_sequences(path: Path, data: Splits) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for part in PARTS:
        for index, batch in enumerate(getattr(data, part)):
            entries = batch.items() if isinstance(batch, dict) else enumerate(batch)
            tensors |= {f"{part}.{index}.{key if isinstance(batch, dict) else f'#{key}'}": value.contiguous() for key, value in entries}
    _write_tensors(path, tensors)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with TensorWriter(path, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def _batch(found: dict[str, torch.Tensor]) -> Batch:
    """A batch as it was: a dict, or a tuple whose places are numbered."""
    if all(key.startswith("#") for key in found):
        return tuple(found[key] for key in sorted(found, key=lambda key: int(key[1:])))
    return found
