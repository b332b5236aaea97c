"""One run of ``fit``, stage by stage."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import nn

from modicum.allocate import ALLOCATORS
from modicum.allocate._family import fill
from modicum.core.budget import Budget, parse_size, readable
from modicum.core.errors import BudgetError, DataError, ModelError, SettingError, near
from modicum.core.method import Change
from modicum.core.option import Option
from modicum.core.plan import Plan, Table
from modicum.core.unit import Site
from modicum.data.splits import Batch, Splits, count_tokens, from_batches, from_text
from modicum.drop._family import Dropper
from modicum.export import TARGETS, load
from modicum.fit.account import build_receipt, untreated
from modicum.fit.assemble import Assembly
from modicum.fit.measure import Measurement, blueprint, offered, sizes
from modicum.fit.meter import Meter
from modicum.fit.quality import Outputs, Quality, compare, plain, streamed
from modicum.fit.request import Request
from modicum.fit.store import FormStore, load_sensitivities, save_sensitivities, write_json
from modicum.forms import Form
from modicum.models.model import Model
from modicum.models.open import open_model
from modicum.sweep import Sensitivity, output_gradients, rehearse
from modicum.sweep.spill import SpillPool

# The site of options over the whole model.
WHOLE = "model"
# What a run needs beside weights and activations: the interpreter, torch and Transformers.
_BASE_BYTES = 700_000_000


class Quiet:
    """Progress that shows nothing; the command line passes one that does."""

    def start(self, stage: str, total: int) -> None:
        """A stage of ``total`` steps begins."""

    def step(self) -> None:
        """One step is done."""


@dataclass
class Result:
    """What a run made: the directory, its receipt and plan, and the model itself."""

    out: Path
    receipt: dict[str, Any]
    plan: Plan
    source: Model
    temporary: Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.temporary is not None:
            weakref.finalize(self, shutil.rmtree, self.temporary, ignore_errors=True)

    @cached_property
    def model(self) -> nn.Module:
        """The compressed model as a working module, loaded from the files that were written."""
        return load(self.out, into=None if self.source.config is not None else copy.deepcopy(self.source.module))


def fit(
    model: str | Path | nn.Module | Model, budget: str | Budget | None = None, *, size: str | None = None, bpw: float | None = None,
    method: str | Option | None = None, plan: str | Path | Plan | None = None, data: Any = None, out: str | Path | None = None,
    menu: Iterable[str | Option] | str | None = None, ram: str | int | None = None, keep: Iterable[str] = (), progress: Quiet | None = None,
    **settings: Any,
) -> Result:  # fmt: skip
    """Give the best ``model`` that fits ``budget``, in files that the target's runtime loads, with a receipt.

    ``model``: ``demo``, a directory, a Hugging Face id or a module. One of ``budget`` (``4.5MB``, ``4.5bpw``), ``size``, ``bpw``, ``method`` (an
    option applied everywhere) or ``plan``. ``data``: a path to text, or any iterable of batches; without it the shipped text. ``out``: the
    directory to write; without it a temporary one that lives as long as the result. Other settings as on the command line: see
    ``Request``. Raises ``ModicumError`` kinds; nothing is left behind but ``OUT.partial``, from which the same call continues.
    """
    budgets = [value for value in (budget, f"{bpw!r}bpw" if bpw is not None else None, size) if value is not None]
    if len(budgets) > 1:
        raise BudgetError(f"fit: exactly one budget must be given, got {len(budgets)}. Pass a size or bits per weight.")
    words = [word for word in menu.split(",") if word.strip()] if isinstance(menu, str) else list(menu or [])
    request = Request(
        budget=Budget.parse(budgets[0]) if budgets and isinstance(budgets[0], str) else budgets[0] if budgets else None,  # type: ignore[arg-type]
        method=Option.parse(method) if isinstance(method, str) else method,
        plan=plan if isinstance(plan, Plan) or plan is None else Plan.read(Path(plan)),
        menu=tuple(_menu_option(word, settings.get("group", 64)) for word in words) or None,
        ram=parse_size(ram) if isinstance(ram, str) else ram,
        data=str(data) if isinstance(data, str | os.PathLike) else None,
        out=Path(out) if out is not None else None, keep=tuple(keep), **settings,
    )  # fmt: skip
    batches = None if data is None or isinstance(data, str | os.PathLike) else data
    run = None
    try:
        with _evaluating(model if isinstance(model, nn.Module) else None):
            run = Run(model, request, batches, progress or Quiet())
            return run.run()
    except BaseException:
        if run is not None and run.temporary is not None:
            shutil.rmtree(run.temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def _evaluating(module: nn.Module | None) -> Iterator[None]:
    """Dropout and batch statistics off in a caller's module, and afterwards as they were."""
    modes = {part: part.training for part in module.modules()} if module is not None else {}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _menu_option(word: str | Option, group: int) -> Option:
    if isinstance(word, Option):
        return word
    word = word.strip()
    short = word.startswith("int") and word[3:].isdigit()
    return Option.parse(f"{word} group={group}" if short else word)


class Run:
    """One run, from the request to the files."""

    def __init__(self, source: str | Path | nn.Module | Model, request: Request, batches: Any, progress: Quiet):
        self.request, self.meter, self.progress = request, Meter(), progress
        self.temporary = Path(tempfile.mkdtemp(prefix="modicum-")) if request.out is None and not request.dry_run else None
        self.out = request.out or (self.temporary or Path(tempfile.gettempdir())) / "model"
        self._check_out()
        with self.meter.stage("open"):
            self.model = open_model(source, allow_pickle=request.allow_pickle, trust_remote_code=request.trust_remote_code)
            self.device = _device(request.device)
            self.data = self._data(batches)
            try:
                self.script = rehearse(self.model, self.data.calibration[0])
            except IndexError:
                raise DataError(
                    f"{self.model.name}: {_extent(self.data.calibration[0])} must fit the model{_limits(self.model)}."
                ) from None
            self.target_name = self._target_name()
            self.target = TARGETS[self.target_name](self.model, self.script)
            self.sites = self.target.sites()
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.pool = SpillPool(self._activation_limit(), None)
        self.events: list[str] = list(self.model.notes)
        self.change = Change()
        self._blueprints: dict = {}

    # Before any work

    def _check_out(self) -> None:
        if self.request.out is None or self.request.dry_run:
            return
        if self.out.exists() and not self.request.overwrite:
            raise SettingError(f"{self.out}: exists already. Choose another --out, or pass --overwrite.")
        parent = next(parent for parent in self.out.absolute().parents if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise SettingError(f"{self.out}: its folder must be writable, {parent} is not. Choose another --out.")

    def _data(self, batches: Any) -> Splits:
        request = self.request
        if batches is not None:
            return from_batches(batches, seed=request.seed)
        return from_text(
            request.data, self.model.tokenizer, samples=request.samples, tokens=request.tokens, seed=request.seed, batch=request.batch,
            test_samples=request.test_samples,
        )  # fmt: skip

    def _target_name(self) -> str:
        if self.request.plan is not None and self.request.target in (None, self.request.plan.target):
            return self.request.plan.target if self.request.plan.target in TARGETS else self._unknown(self.request.plan.target)
        return self.request.target or ("transformers" if self.model.is_causal else "modicum")

    @staticmethod
    def _unknown(name: str) -> str:
        raise SettingError(f"target {name!r}: is not known. {near(name, TARGETS)}")

    def _activation_limit(self) -> int | None:
        if self.request.ram is None:
            return None
        weights, model = self.model.weights, self.model
        size = lambda names: sum(weights.held(name).numel() * weights.dtype(name).itemsize for name in names)
        blocks = max((size(block.parameters) for block in model.blocks.values()), default=0)
        widest = max((unit.shape[1] for unit in model.units.values()), default=0)
        largest = max((unit.size for unit in model.units.values()), default=0)
        held = size(model.trunk) + blocks if weights.lazy else 0
        needed = _BASE_BYTES + held + 20 * widest * widest + 24 * largest
        left = self.request.ram - needed
        if left < 32_000_000:
            raise BudgetError(f"--ram: must be at least {readable(needed + 64_000_000)} for this model, got {readable(self.request.ram)}.")
        return left

    # The stages

    def run(self) -> Result:
        """Do it all, or with ``dry_run`` only say what would be done."""
        if self.request.dry_run:
            return Result(self.out, self._forecast(), Plan(self.target_name), self.model)
        menu = self.request.options(self.target_name)
        if self.request.budget is not None:
            self._reachable(sizes(self.target, self.sites, menu), menu)
        else:
            self._explicit()
        lock = filelock.FileLock(str(self.partial) + ".lock")
        try:
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise SettingError(f"{self.out}: is being written by another run. Wait for it, or choose another --out.") from None
        except OSError as error:
            raise SettingError(f"{self.out}: must be writable, is not ({error.strerror or error}). Choose another --out.") from None
        try:
            return self._locked(menu)
        except OSError as error:
            raise ModelError(
                f"{self.partial}: cannot be written ({error.strerror or error}). Free space or choose another --out."
            ) from None
        finally:
            lock.release()
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()

    def _locked(self, menu: tuple[Option, ...]) -> Result:
        self._begin()
        plan, table = self._plan(menu)
        plan.write(self.partial / "plan.json")
        change = self.change = self._reshaped(plan)
        dropped = frozenset(change.dropped)
        assembly = Assembly(
            self.model,
            self.script,
            self._unit_options(plan),
            self.partial / "assembly",
            start=change.forms,
            biases=change.biases,
            dropped=dropped,
        )
        self.progress.start("assemble", len(self.model.blocks))
        with self.meter.stage("assemble"):
            forms = assembly.run(self.data.calibration, seed=self.request.seed, pool=self.pool, tick=lambda _: self.progress.step())
        self.events += assembly.events
        self._refuse_fallbacks()
        final = self.partial / "final"
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        self.progress.start("export", 1)
        with self.meter.stage("export"):
            layout = self.target.layout(forms, change.biases, dropped)
            predicted = layout.nbytes()
            layout.write(final)
            self.target.finish(final, forms, dropped)
        plan.write(final / "plan.json")
        receipt = self._receipt(plan, table, forms, predicted, final)
        write_json(final / "receipt.json", receipt)
        from modicum.receipt import report

        (final / "report.html").write_text(report(receipt), encoding="utf-8")
        self._check_out()  # somebody else may have written it meanwhile
        if self.out.exists():
            self.out.rename(self.partial / "replaced")
        final.rename(self.out)
        shutil.rmtree(self.partial, ignore_errors=True)
        return Result(self.out, receipt, plan, self.model, self.temporary)

    def _begin(self) -> None:
        """Continue an interrupted run of the same request, or start afresh."""
        fingerprint = self.request.fingerprint(self.model_hash(), self.data.hashes)
        state = self.partial / "state.json"
        if self.partial.exists():
            known = _state(state)
            if (self.partial / "replaced").exists() and not self.out.exists():
                (self.partial / "replaced").rename(self.out)
            if known.get("format") != "modicum-run" and any(self.partial.iterdir()):
                raise SettingError(f"{self.partial}: exists and is no interrupted run. Move it away, or choose another --out.")
            if known.get("fingerprint") != fingerprint:
                shutil.rmtree(self.partial)
        self.partial.mkdir(exist_ok=True)
        write_json(state, {"format": "modicum-run", "fingerprint": fingerprint})
        self.pool.directory = self.partial

    def model_hash(self) -> str:
        """What tells this model from another without reading a checkpoint whole: names, shapes, and file sizes and times, or all values."""
        digest = hashlib.sha256()
        for name in self.model.weights.names:
            held = self.model.weights.held(name)
            digest.update(f"{name} {tuple(held.shape)} {self.model.weights.dtype(name)}".encode())
            if not self.model.weights.lazy:
                digest.update(held.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        for path in self.source_files():
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
        return digest.hexdigest()

    def source_files(self) -> list[Path]:
        """Weight files the model was opened from; none for a module."""
        return list(getattr(getattr(self.model.weights, "shards", None), "files", []))

    # Choosing

    def _reachable(self, table: Table, menu: tuple[Option, ...]) -> None:
        """Raise ``BudgetError`` where even the cheapest selection is too large."""
        assert self.request.budget is not None
        allowed = self.request.budget.bytes(self.model.parameters)
        smallest = table.cost(table.cheapest())
        if smallest <= allowed:
            return
        parts = sorted(
            ((u.dense_bytes, u.module, self.target.refusal(u)) for u in self.model.units.values() if self.target.refusal(u)), reverse=True
        )
        blocked = f" {parts[0][1]} stays dense there ({readable(parts[0][0])}, {parts[0][2]})." if parts else ""
        raise BudgetError(
            f"budget {self.request.budget}: {readable(allowed)} cannot be reached, the smallest for target {self.target_name} and this menu is "
            f"{readable(smallest)} ({8 * smallest / self.model.parameters:.2f} bpw).{blocked}{self._other_target(allowed)}"
        )

    def _other_target(self, allowed: int) -> str:
        for name in TARGETS:
            if name == self.target_name or (name == "transformers" and self.model.config is None):
                continue
            other = TARGETS[name](self.model, self.script)
            table = sizes(other, other.sites(), self.request.options(name))
            smallest = table.cost(table.cheapest())
            fits = "reaches it" if smallest <= allowed else "does not reach it either"
            return f" --target {name} {fits}: its smallest is {readable(smallest)}."
        return ""

    def _explicit(self) -> None:
        """Check a method or a plan against the sites before any work."""
        if self.request.plan is not None:
            known = {site.name: site for site in self.sites} | {unit.name: unit for unit in self.model.units.values()}
            for site, text in self.request.plan.options.items():
                if site == WHOLE:
                    self._whole(Option.parse(text))
                elif site not in known:
                    raise SettingError(f"plan: site {site!r} is not in this model for target {self.target_name}. {near(site, known)}")
                elif self._whole(Option.parse(text), rest=True) is not None:
                    raise SettingError(f"plan: {text!r} works on the whole model, not on {site}. Give it to the site {WHOLE!r}.")
            self._unit_options(self.request.plan)
        elif (
            self.request.method is not None
            and (self._whole(self.request.method, rest=True) is None)
            and not any(self.target.adapt(site, self.request.method) for site in self.sites)
        ):
            raise SettingError(
                f"method {str(self.request.method)!r}: target {self.target_name} can hold it on no site of this model. Pass --target modicum."
            )

    def _whole(self, option: Option, *, rest: bool = False) -> Option | None:
        """The step over the whole model an option begins with. Raises ``SettingError`` where such a step stands elsewhere."""
        if not option.steps or not isinstance(option.steps[0], Dropper):
            if any(isinstance(step, Dropper) for step in option.steps) or not rest:
                raise SettingError(f"option {str(option)!r}: a step over the whole model must come first and alone.")
            return None
        if any(isinstance(step, Dropper) for step in option.steps[1:]) or (len(option.steps) > 1 and not rest):
            raise SettingError(f"option {str(option)!r}: only one step may drop parts of the model, and it comes first.")
        return Option(option.steps[:1])

    def kept(self, site: Site) -> bool:
        """Whether the request keeps a site as it is."""
        names = [site.name, *(name for unit in site.units for name in (unit.name, unit.module))]
        return any(fnmatch.fnmatch(name, pattern) or pattern in name.split(".") for pattern in self.request.keep for name in names)

    def _plan(self, menu: tuple[Option, ...]) -> tuple[Plan, Table | None]:
        if self.request.plan is not None:
            return self.request.plan, None
        if self.request.method is not None:
            plan, method = Plan(self.target_name), self.request.method
            if (whole := self._whole(method, rest=True)) is not None:
                plan.options[WHOLE] = str(whole)
                method = Option(method.steps[1:])
            for site in self.sites:
                fitted = self.target.adapt(site, method)
                if method.steps and fitted is not None and not self.kept(site):
                    plan.options[site.name] = str(fitted)
            return plan, None
        table = self._measured(menu)
        assert self.request.budget is not None
        for site in self.sites:
            if self.kept(site):
                table.choices[site.name] = [choice for choice in table.choices[site.name] if choice.option == "keep"] or table.choices[
                    site.name
                ]
        allowed = self.request.budget.bytes(self.model.parameters)
        with self.meter.stage("allocate"):
            if table.cost(table.cheapest()) > allowed:
                raise BudgetError(
                    f"budget {self.request.budget}: {readable(allowed)} cannot be reached with --keep, the smallest is "
                    f"{readable(table.cost(table.cheapest()))}. Keep less, or allow more bytes."
                )
            picks = self._spent(table, allowed)
        plan = Plan(self.target_name, {site: table.choices[site][index].option for site, index in picks.items()})
        return plan, table

    def _spent(self, table: Table, allowed: int) -> dict[str, int]:
        """Choose, then choose again with what the header's estimate held back: the table assumes the longest offsets."""
        choose = ALLOCATORS[self.request.allocator]
        best = choose(table, allowed, None)
        for _ in range(4):
            room = table.cost(best) + allowed - self._exact_bytes(table, best)
            better = [
                picks
                for picks in (choose(table, room, None), fill(table, best, room))
                if table.harm(picks) < table.harm(best) and self._exact_bytes(table, picks) <= allowed
            ]
            if not better:
                break
            best = min(better, key=table.harm)
        return best

    def _exact_bytes(self, table: Table, picks: dict[str, int]) -> int:
        """Bytes of the files a selection gives, header and all, from forms of zeros."""
        forms: dict[str, Form] = {}
        for site in self.sites:
            option = Option.parse(table.choices[site.name][picks[site.name]].option)
            forms |= {unit.name: blueprint(option, unit, self._blueprints) for unit in site.units if option.steps}
        return self.target.layout(forms, {}, frozenset()).nbytes()

    def _measured(self, menu: tuple[Option, ...]) -> Table:
        directory = self.partial / "measure"
        directory.mkdir(exist_ok=True)
        path = directory / "table.json"
        if path.exists():
            stored = json.loads(path.read_text())
            self.events += stored["events"]
            return Table.from_json(stored["table"])
        sensitivities = self._sensitivities(directory)
        measurement = Measurement(self.model, self.script, self.target, self.sites, menu, sensitivities, directory)
        self.progress.start("measure", len(self.model.blocks))
        with self.meter.stage("measure"):
            table = measurement.run(self.data.calibration, seed=self.request.seed, pool=self.pool, tick=lambda _: self.progress.step())
        write_json(path, {"table": table.to_json(), "events": measurement.events})
        self.events += measurement.events
        return table

    def _sensitivities(self, directory: Path) -> dict[str, Sensitivity]:
        if self.request.harm == "error":
            return {}
        path = directory / "sensitivities.safetensors"
        if path.exists():
            return load_sensitivities(path)
        rows, batches = 0, []
        for batch in self.data.calibration:
            batches.append(batch)
            rows += len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])
            if rows >= self.request.gradient_samples:
                break
        self.progress.start("gradients", 1)
        with self.meter.stage("gradients"):
            found = output_gradients(self.model, batches, self.script, self.request.seed)
        save_sensitivities(path, found)
        return found

    def _reshaped(self, plan: Plan) -> Change:
        """The structural change a plan asks for on the whole model."""
        if WHOLE not in plan.options:
            return Change()
        (step,) = Option.parse(plan.options[WHOLE]).steps
        assert isinstance(step, Dropper)
        self.progress.start("survey", 1)
        with self.meter.stage("survey"):
            change = step.reshape(self.model, self.script, self.data.calibration, self.pool, self.request.seed)
        if reason := self.target.holds(change):
            raise SettingError(f"method {step}: target {self.target_name} cannot hold its result: {reason}. Pass --target modicum.")
        self.events += change.events
        return change

    def _unit_options(self, plan: Plan) -> dict[str, Option]:
        options: dict[str, Option] = {}
        sites = {site.name: site for site in self.sites}
        for name, text in plan.options.items():
            if name == WHOLE:
                continue
            option = Option.parse(text)
            units = sites[name].units if name in sites else (self.model.units[name],)
            site = sites.get(name) or Site(name, "unit", units, data_free=self.script.data_free(units[0]))
            refused = next((reason for unit in units if (reason := self.target.refusal(unit))), "")
            fitted = None if refused and option.steps else self.target.adapt(site, option)
            if fitted is None and not option.steps:
                continue
            if fitted is None:
                raise SettingError(f"plan: target {self.target_name} cannot hold {text!r} on {name}. Choose another option or target.")
            options |= {unit.name: fitted for unit in units if fitted.steps}
        return options

    def _refuse_fallbacks(self) -> None:
        raised = [event for event in self.events if "damping raised" in event]
        if raised and not self.request.allow_fallback:
            raise ModelError(
                f"{len(raised)} solves needed more damping than was asked for, the first: {raised[0]}. Use more calibration tokens, or pass "
                "--allow-fallback to accept them; the receipt will name each."
            )

    # After

    def _receipt(self, plan: Plan, table: Table | None, forms: FormStore, predicted: int, final: Path) -> dict[str, Any]:
        actual = sum(path.stat().st_size for path in final.iterdir() if path.name.endswith((".safetensors", ".safetensors.index.json")))
        if actual != predicted:
            raise ModelError(f"{self.out}: must have {predicted} bytes by the plan, has {actual}. Report this.")
        if self.request.budget is not None and actual > self.request.budget.bytes(self.model.parameters):
            raise BudgetError(f"budget {self.request.budget}: the files have {actual} bytes, which is more. Report this.")
        self.progress.start("verify", 1)
        with self.meter.stage("verify"):
            verification = self._verify(final, forms)
        self.progress.start("judge", len(self.data.test))
        with self.meter.stage("judge"):
            quality = self._quality(forms).summary(self.request.seed)
        return build_receipt(self, plan, table, forms, predicted, actual, verification, quality, final)

    def _verify(self, final: Path, forms: FormStore) -> dict[str, Any]:
        """Reload with the target's own loader and compare with the dequantized weights on test sequences."""
        module, found = self.target.verify(final, forms)
        batches = self.data.test[:1]
        judged = compare(self._candidate(batches, forms), plain(module, batches), batches, False)
        worst = max(judged.divergence)
        if worst > 1e-3:
            raise ModelError(
                f"{self.out}: the reloaded model must match the dequantized weights, differs by {worst:.2g} ({judged.metric})."
            )
        return found | {"logits": {"metric": judged.metric, "largest": worst, "sequences": len(judged.divergence)}}

    def _candidate(self, batches: list[Batch], forms: Mapping[str, Any]) -> Outputs:
        dropped = frozenset(self.change.dropped)
        return streamed(self.model, batches, self.script, forms, biases=self.change.biases, dropped=dropped, pool=self.pool)

    def _quality(self, forms: Mapping[str, Any]) -> Quality:
        batches = self.data.test
        original = streamed(self.model.twin(), batches, self.script, pool=self.pool)
        return compare(_ticked(original, self.progress.step), self._candidate(batches, forms), batches, self.model.is_causal)

    def _forecast(self) -> dict[str, Any]:
        """What a run would do, without doing it."""
        menu = self.request.options(self.target_name)
        table = sizes(self.target, self.sites, menu)
        smallest = table.cost(table.cheapest())
        largest = table.fixed + sum(max(c.bytes for c in found) for found in table.choices.values())
        tokens = count_tokens(self.data.calibration)
        products = 2 * tokens * sum(unit.size for unit in self.model.units.values() if unit.kind != "embedding")
        covariances = sum(2 * tokens * self.model.units[stage[0]].shape[1] ** 2 for stage in self.script.stages)
        solves = sum(unit.size * unit.shape[1] for site in self.sites for unit in site.units) * len(menu)
        per_token = max((unit.shape[0] + unit.shape[1] for unit in self.model.units.values()), default=0)
        return {
            "format": "modicum-forecast", "version": 1, "model": self.model.name, "target": self.target_name,
            "parameters": self.model.parameters, "original_bytes": self.model.dense_bytes, "smallest_bytes": smallest, "largest_bytes": largest,
            "smallest_bpw": 8 * smallest / self.model.parameters, "blocks": len(self.model.blocks), "units": len(self.model.units),
            "sites": [{"name": s.name, "kind": s.kind, "weights": s.size, "data_free": s.data_free, "options": list(offered(self.target, s, menu))}
                      for s in self.sites],
            "untreated": untreated(self, {}), "calibration_tokens": tokens, "activation_bytes": tokens * per_token * self.model.dtype.itemsize,
            "work_operations": int(2 * products + covariances + solves), "fits": self._fits(smallest, largest),
        }  # fmt: skip

    def _fits(self, smallest: int, largest: int) -> bool | None:
        if self.request.budget is None:
            return None
        return smallest <= self.request.budget.bytes(self.model.parameters)


def _extent(batch: Batch) -> str:
    """What of a batch can be too much for a model, in words."""
    ids = batch.get("input_ids") if isinstance(batch, dict) else batch[0]
    if ids is None or ids.is_floating_point():
        return "the data's indices"
    return f"windows of {ids.shape[-1]} tokens with ids up to {int(ids.max())}"


def _limits(model: Model) -> str:
    """What a model's config says it takes, in words."""
    said = {"tokens": getattr(model.config, "vocab_size", None), "positions": getattr(model.config, "max_position_embeddings", None)}
    known = " and ".join(f"{count} {what}" for what, count in said.items() if count is not None)
    return f", which has {known}" if known else ", do not"


def _state(path: Path) -> dict[str, Any]:
    """What an interrupted run wrote of itself; empty where nothing, or something foreign, stands there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _ticked(outputs: Iterator[tuple[int, Any]], tick: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    for item in outputs:
        yield item
        tick()


def _device(name: str) -> torch.device:
    """Where the work runs. Raises ``SettingError``: a GPU that was asked for is never replaced by the CPU without a word."""
    if name not in ("auto", "cpu"):
        raise SettingError(f"device {name!r}: must be auto or cpu, all work is on the CPU so far.")
    return torch.device("cpu")
