"""What a target's own loader makes of a plan's kinds of change, tried on a small model before anything is measured.

An architecture may read weights while it is initialized, merge tensors as they are loaded, number its layers in a way of its own, or compute
with a width that a cut changes. Nobody can list that for all architectures, and a loader says it at the end of a run, when all work is done. So
a small model of the same kind is written, loaded and compared first; kinds of weight that come back wrong stay as they are.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError, quoted
from modicum.core.files import cache_folder, keep_json, read_json
from modicum.core.option import Option
from modicum.core.unit import Stats, unnumbered
from modicum.data.splits import Batch, call, placed
from modicum.export import reshaped
from modicum.export._family import Target
from modicum.export.small import SMALL, small
from modicum.forms import Dense, Form
from modicum.models.quiet import hushed
from modicum.sweep import Sweep

# By family what sites take in turn, so that schemes stand side by side as in a plan. Experts take the first, and so does what cannot hold its own.
_INTEGERS = ("nearest bits=8 group=32", "nearest bits=4 group=32", "nearest bits=2 group=0", "nearest bits=8 group=0")
FAMILIES = {"integer": _INTEGERS, "float8": ("float8",)}
# How far outputs may be apart, as a share of how far they vary: by the order of sums, or by a weight that is another.
_ROUNDING = {torch.float32: 1e-2, torch.float64: 1e-2}
_HALF_ROUNDING = 0.1
_LIBRARIES = ("modicum", "torch", "transformers", "compressed-tensors", "safetensors")
# Of a config that which no weight depends on.
_ELSEWHERE = {"_name_or_path", "transformers_version", "architectures", "id2label", "label2id"}


@dataclass
class Finding:
    """What a probe has found: kinds of weight that come back wrong, and why; or why nothing at all comes back right."""

    off: dict[str, str] = field(default_factory=dict)
    nothing: str = ""
    untried: bool = False
    # Kinds of weight whose cuts come back wrong, and why models without a block do; None where nobody has asked yet.
    cuts: dict[str, str] | None = None
    depth: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return {"format": "modicum-probe", "version": 1, **vars(self)}

    @classmethod
    def from_json(cls, value: Any) -> Finding:
        """Inverse of ``to_json``. Raises ``ValueError`` where it is anything else."""
        if not isinstance(value, dict) or (value.get("format"), value.get("version")) != ("modicum-probe", 1):
            raise ValueError("it is no probe's finding")
        off, nothing, untried, cuts, depth = (value.get(name) for name in ("off", "nothing", "untried", "cuts", "depth"))
        if not isinstance(nothing, str) or not isinstance(untried, bool) or not _texts(off):
            raise ValueError("it is no probe's finding")
        if not (cuts is None or _texts(cuts)) or not isinstance(depth, str | None):
            raise ValueError("it is no probe's finding")
        return cls(dict(off or {}), nothing, untried, cuts, depth)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)


class Trial:
    """A small model, its target, and what comes of writing and loading it."""

    def __init__(self, target: Target, batch: Batch):
        self.target, self.model, self.script = target, target.model, target.script
        self.batch = self.script.example(batch)
        self.forms = {family: dict(self._forms(texts)) for family, texts in FAMILIES.items()}

    def _forms(self, texts: Sequence[str]) -> Iterator[tuple[str, tuple[str, Form]]]:
        """For each unit of a site its kind, and a form as plans make it."""
        for place, site in enumerate(self.target.sites()):
            first = 0 if site.kind == "experts" else place % len(texts)
            tried = (self.target.adapt(site, Option.parse(text)) for text in (*texts[first:], *texts))
            if (option := next((found for found in tried if found is not None and found.steps), None)) is not None:
                current: dict[str, Form] = {unit.name: Dense(self.model.matrix(unit).contiguous()) for unit in site.units}
                change = option.steps[0].apply(site, {unit.name: Stats() for unit in site.units}, current)
                kind = ", ".join(dict.fromkeys(unit.likeness for unit in site.units))
                yield from ((name, (kind, form)) for name, form in change.forms.items())

    def kinds(self, family: str) -> list[str]:
        """Kinds of weight that a family treats: experts, then by name."""
        return sorted({kind for kind, _ in self.forms[family].values()}, key=lambda kind: (kind != "experts", kind))

    def quantized(self, families: Mapping[str, str]) -> str:
        """Why the model whose kinds of weight are treated by these families does not come back right, or an empty string."""
        forms = {name: form for family, found in self.forms.items() for name, (kind, form) in found.items() if families.get(kind) == family}
        return self.written(forms)

    def written(self, forms: Mapping[str, Form], dropped: frozenset[str] = frozenset()) -> str:
        """Why the model with these forms, without these blocks, does not come back right, or an empty string."""
        try:
            with tempfile.TemporaryDirectory(prefix="modicum-probe-") as folder, hushed(), torch.random.fork_rng():
                self.target.layout(forms, {}, dropped).write(Path(folder))
                self.target.describe(Path(folder), forms, dropped)
                loaded, _ = self.target.verify(Path(folder), forms, self.batch)
                return self._apart(loaded, forms, dropped)
        except Exception as error:  # whatever a loader, or a model that it has loaded wrong, may raise
            _require_of_the_loader(error)
            return quoted(str(error).replace(folder, "the files"), 160)

    def _apart(self, loaded: Any, forms: Mapping[str, Form], dropped: frozenset[str]) -> str:
        """How the outputs of what was loaded differ from those of the forms."""
        sweep = Sweep(self.model.stored, [self.batch], self.script, values=dict(forms), dropped=dropped)
        ((_, mine),) = sweep.run()
        with torch.no_grad():
            theirs = call(loaded, placed(self.batch, "cpu"))
        most = _ROUNDING.get(self.model.dtype, _HALF_ROUNDING)
        pairs = zip(self.script.outputs.of(mine), self.script.outputs.of(theirs))
        worst = max(gap(one[1].cpu(), other[1]) for one, other in pairs)
        return "" if worst <= most else f"outputs differ by {worst:.1%} of how far they vary"


def _require_of_the_loader(error: BaseException) -> None:
    """Raise ``ModelError`` for what tells of this machine alone, now: a full disk says nothing of a loader, and must not be kept as if it did."""
    told: BaseException | None = error
    while told is not None:
        if isinstance(told, MemoryError) or (isinstance(told, OSError) and told.errno not in (None, errno.ENOENT)):
            raise ModelError(
                f"{tempfile.gettempdir()}: a small model must be written there and loaded, to see what the target's loader makes of it, and "
                f"the system says: {quoted(told)}. Free some space, or name another folder in TMPDIR."
            ) from error
        told = told.__cause__ or told.__context__


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square difference as a share of the first's standard deviation; what is no number in the first tells nothing."""
    if one.shape != other.shape:
        return float("inf")
    known = one.isfinite()
    if not known.any():
        return 0.0
    mine, theirs = one[known].double(), other[known].double()
    spread = (mine - mine.mean()).norm().clamp_min(1e-30)
    apart = float((mine - theirs).norm() / spread)
    return float("inf") if math.isnan(apart) else apart


def weights(trial: Trial) -> Finding:
    """Which kinds of weight come back wrong when they are quantized, by family; found by halving, so that one that is wrong costs few tries."""
    integers, floats = trial.kinds("integer"), trial.kinds("float8")
    every = dict.fromkeys(integers, "integer")
    reason = trial.quantized(every)
    mixed = every | dict.fromkeys(floats[::2], "float8")
    if not reason and not trial.quantized(mixed):
        return Finding()
    if nothing := trial.written({}):
        return Finding(nothing=nothing)
    off = _wrong(trial, integers, "integer") if reason else {}
    off |= _wrong(trial, floats, "float8")
    mixed = {kind: family for kind, family in mixed.items() if f"{family} {kind}" not in off}
    if "float8" in mixed.values() and (reason := trial.quantized(mixed)):
        off |= {f"float8 {kind}": reason for kind in floats}
    return Finding({f"{name.split(' ')[0]} {alike}": why for name, why in off.items() for alike in name.partition(" ")[2].split(", ")})


def _wrong(trial: Trial, kinds: list[str], family: str) -> dict[str, str]:
    """Kinds that come back wrong when this family treats them, and why."""
    off: dict[str, str] = {}

    def safe(base: list[str], kinds: list[str]) -> list[str]:
        """Those of the kinds that can be treated together with the others of ``base``."""
        if not kinds or not (why := trial.quantized(dict.fromkeys([*base, *kinds], family))):
            return kinds
        if len(kinds) == 1:
            off[f"{family} {kinds[0]}"] = why
            return []
        first = safe(base, kinds[: len(kinds) // 2])
        return [*first, *safe([*base, *first], kinds[len(kinds) // 2 :])]

    safe([], kinds)
    return off


class Probe:
    """What is found for one target and model; each question is tried once, and the answers are kept in the user's cache folder."""

    def __init__(self, target: Target, batch: Batch):
        self.target, self.batch = target, batch
        self.path = cache_folder() / "probes" / f"{_key(target, batch)}.json"
        self.finding = self._kept()

    @cached_property
    def trial(self) -> Trial | None:
        """What questions are tried on: the model itself where it is small, or a small one of its kind; None where none is found."""
        model, script, batch = self.target.model, self.target.script, self.batch
        if model.parameters > SMALL:
            found = small(model, script, batch)
            return None if found is None else Trial(type(self.target)(found[0], found[1]), found[2])
        if model.weights.device.type != "cpu":
            model = model.on(torch.device("cpu"))
        return Trial(type(self.target)(model, script), placed(batch, "cpu"))

    def _kept(self) -> Finding:
        """The finding about weights, as it is kept, or made now and kept."""
        with suppress(ValueError):
            return Finding.from_json(read_json(self.path))
        found = Finding(untried=self.trial is None) if self.trial is None else weights(self.trial)
        keep_json(self.path, found.to_json())
        return found

    def reshaped(self, cuts: bool, depth: bool) -> list[str]:
        """Ask about cuts and about blocks that are left out, where plans may have them; what a user must know of the answers."""
        found, trial = self.finding, self.trial if (cuts or depth) and not self.finding.untried else None
        if trial is not None:
            before = (found.cuts, found.depth)
            found.cuts = reshaped.cuts(trial) if cuts and found.cuts is None else found.cuts
            found.depth = reshaped.depth(trial) if depth and found.depth is None else found.depth
            if before != (found.cuts, found.depth):
                keep_json(self.path, found.to_json())
        off = {f"cut {kind}": why for kind, why in (found.cuts or {}).items()} | ({"drop": found.depth} if found.depth else {})
        self.target.off |= off
        return self._told(off)

    def notes(self) -> list[str]:
        """What a user must know of it."""
        target = self.target.name
        if self.finding.untried:
            return [
                f"probe: not made, no small model of this kind was found; whether target {target} loads what is written shows at the end."
            ]
        return self._told(self.finding.off)

    def _told(self, off: Mapping[str, str]) -> list[str]:
        reasons: dict[tuple[str, str], list[str]] = {}
        for name, why in off.items():
            family, _, kind = name.partition(" ")
            reasons.setdefault((family, why), []).append(kind)
        target = self.target.name
        return [
            f"probe: {_listed(kinds)} take{'s' if len(kinds) == 1 else ''} no {_SHOWN[family]}, which target {target} would load otherwise ({why})."
            if family != "drop"
            else f"probe: no block is left out, target {target} would load what remains otherwise ({why})."
            for (family, why), kinds in reasons.items()
        ]


_SHOWN = {"integer": "integers", "float8": "8-bit floats", "cut": "cuts"}


def _listed(kinds: list[str]) -> str:
    return ", ".join(kinds[:3]) + (f" and {len(kinds) - 3} more kinds of weight" if len(kinds) > 3 else "")


def _key(target: Target, batch: Batch) -> str:
    """What a finding depends on: the class and its code, the config, the kinds of weights, libraries, and our own code that writes."""
    model = target.model
    config = {name: value for name, value in model.config.to_dict().items() if name not in _ELSEWHERE}
    shown = [
        target.name, type(model.module).__name__, json.dumps(config, sort_keys=True, default=str),
        sorted({(unnumbered(name), str(model.weights.dtype(first))) for name, first in model.weights.first.items()}),
        sorted(map(str, batch)) if isinstance(batch, Mapping) else len(batch), [_version(name) for name in _LIBRARIES],
    ]  # fmt: skip
    digest = hashlib.sha256(repr(shown).encode())
    with suppress(OSError, TypeError):
        digest.update(Path(inspect.getfile(type(model.module))).read_bytes())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def probed(target: Target, batch: Batch) -> list[str]:
    """Take off a target's menu what its loader does not bring back right, and say so. Raises ``ModelError`` where nothing comes back right."""
    probe = Probe(target, batch)
    if probe.finding.nothing:
        raise ModelError(
            f"{target.model.name}: what is written for target {target.name} must load as the same model, does not even with all weights as they "
            f"are ({probe.finding.nothing}). Pass --target modicum."
        )
    target.off, target.probe = dict(probe.finding.off), probe
    return probe.notes()
