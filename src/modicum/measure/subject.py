"""What a run works on: an opened model, its data, and what a rehearsal saw."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.budget import readable
from modicum.core.errors import ModelError, ModicumError, SettingError, near
from modicum.core.memory import free_memory, own_memory, trim
from modicum.core.option import Option
from modicum.core.rules import matches
from modicum.core.unit import Site
from modicum.data import media
from modicum.data.extent import extent
from modicum.data.forward import own_errors, without_labels
from modicum.data.splits import Batch, Splits, count_rows, count_tokens, from_batches, from_text, one_row
from modicum.drop._family import Dropper, Spanner
from modicum.drop.experts import expert_sites
from modicum.export import TARGETS, Target
from modicum.export.probe import probed
from modicum.export.source import open_source
from modicum.forms import Form
from modicum.measure.compared import held_against_plain, settled_alike
from modicum.measure.computing import Settle, agreed
from modicum.measure.limits import require_positions
from modicum.measure.preparing import prepared
from modicum.measure.scouting import rounding_suffices
from modicum.measure.settings import Settings
from modicum.measure.settling import settled
from modicum.measure.writing import written_by
from modicum.models.cached import keep_cache
from modicum.models.model import Model
from modicum.models.open import apart, open_model
from modicum.runtime.compute import Compute
from modicum.runtime.memory import Plan, planned
from modicum.runtime.runtime import Runtime
from modicum.runtime.targets import RUNTIMES
from modicum.sweep import Script
from modicum.sweep.coupling import coupled_cuts, shortened
from modicum.sweep.outline import outlined
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.rehearsal import still_alone
from modicum.sweep.spill import SpillPool
from modicum.table.menu import Menu, cutters, default_menu, require_choices, weight_options
from modicum.table.reach import LESS, NEAR, far_below
from modicum.table.rules import names_of, ruling
from modicum.table.ruling import check_names, check_rules
from modicum.table.sizing import Sizing
from modicum.table.taking import Taking

# Tokens that are enough to see what a model is made of.
_FEW = 16


@dataclass
class Subject:
    """A model with its data and script, and its targets as they are asked for."""

    settings: Settings
    model: Model
    data: Splits
    script: Script
    compute: Compute
    memory: Plan = field(default_factory=Plan)
    planned: int = 0  # tokens that a run would calibrate on, where this is only its forecast
    most: int | None = None  # bytes of files, where the default menu need only serve a budget of so many
    rounding: bool = False  # whether that budget needs no more than rounding
    unconfirmed: bool = False  # whether what opening tells by running is left for later
    given: Model | None = None  # the model as it came, where another that answers nearly the same stands in its place
    lost: float = 0.0  # what that loses whatever is chosen, and what rounding keys and values does
    rounding_cache: float | None = None  # what that alone loses, where keys and values are rounded
    _targets: dict[str, Target] = field(default_factory=dict)
    _runtimes: dict[tuple, Runtime] = field(default_factory=dict)
    _unused: dict[str, frozenset[str]] = field(default_factory=dict)
    _zeros: dict[Any, Form] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.script.feels = self.takes_gradients
        kept = (name for name, unit in self.model.units.items() if self.kept(Site(name, "unit", (unit,))))
        self.script.fixed = {self.script.block_of[name] for name in kept if name in self.script.block_of}

    @classmethod
    def open(
        cls, source: str | Path | nn.Module | Model, settings: Settings, batches: Any = None, data: Splits | None = None,
        settle: Settle | None = None, alone: bool = False,
    ) -> Subject:  # fmt: skip
        """Open the model, split the data (unless it is split already), settle in which dtype to compute, and rehearse. Raises the errors of each.

        Where a measurement found that forwards stand ``alone``, what else is told by running them is left for ``confirm``.
        """
        model, settle = opened(source, settings), settle or agreed(settings)
        if batches is None and data is None and not media.kind_of(model.module, settings.data):
            require_positions(model, settings.tokens)
        if getattr(settings, "dry_run", False) and model.weights.lazy and batches is None:
            return cls._outlined(model, settings, data, settle)
        data = data or _split(model, settings, batches)
        if isinstance(source, nn.Module) and model.settled.computed and not settled_alike(source, model, data.calibration[0]):
            model = open_model(apart(source), settled=False)
        # A module in memory is left where the caller has put it, unless told otherwise.
        device = model.weights.home if settings.device == "auto" else chosen_device(settings.device)
        if {device.type, model.weights.home.type} != {"cpu"}:
            model, data = model.on(device), data.on(device)
        model, script, compute = settled(model, data, settings, settle(model, data), alone)
        if not alone and not getattr(settings, "dry_run", False):
            model.notes += held_against_plain(model, script, data, settings.ram)
        model.notes += script.learnt.events()
        given, lost = model, 0.0
        if not getattr(settings, "dry_run", False):
            model, lost = prepared(model, script, data.calibration, settings, compute)
        return cls(settings, model, data, script, compute, unconfirmed=alone, given=None if settings.rotate is None else given, lost=lost)

    @classmethod
    def _outlined(cls, model: Model, settings: Settings, data: Splits | None, settle: Settle) -> Subject:
        """The same from headers alone, and a few tokens."""
        example, source, taken, planned = _glimpse(model, settings, data)
        try:
            script, cuts = outlined(model, example, output=settings.output, classes=settings.classes)
        except ModicumError:
            raise
        except Exception as error:  # whatever the model's own forward raises
            with own_errors(model.module, example):
                raise
            raise AssertionError from error
        few = Splits([example], [example], [example], source, (), {}, taken)
        compute = settle(model, few)
        found = cls(settings, compute.of(model), few, script, compute, planned=planned)
        found.__dict__["cuts"] = {site.name: site for site in cuts} | expert_sites(model, script)
        return found

    def confirm(self) -> list[str]:
        """Do what opening left for later, before anything is made; notes. Raises ``ModelError`` where the model is not what was measured."""
        if not self.unconfirmed:
            return []
        self.unconfirmed, notes = False, held_against_plain(self.model, self.script, self.data, self.settings.ram)
        batch, *others = (*self.data.calibration, *self.data.validation, *self.data.test)
        if not still_alone(self.model, batch, others, self.script.outputs):
            raise ModelError(f"{self.model.name}: must run as when it was measured, its forwards share state now. Measure again.")
        return notes

    @property
    def original(self) -> Model:
        """What results are held against: the model as it came."""
        return self.given or self.model

    @cached_property
    def felt(self) -> Model:
        """The model that gradients are taken of."""
        alike = self.compute.gradients == self.compute.forward
        return self.model if alike else self.compute.of(self.model, gradients=True)

    @property
    def takes_gradients(self) -> bool:
        """Whether gradients of the output may be taken."""
        return bool(self.model.blocks) and self.settings.harm != "error"

    # Targets

    def target(self, name: str) -> Target:
        """The target of a name. Raises ``SettingError``."""
        if name not in TARGETS:
            raise SettingError(f"target {name!r}: is not known. {near(name, TARGETS)}")
        if name not in self._targets:
            target = TARGETS[name](self.model, self.script)
            self.model.notes += probed(target, self.data.calibration[0]) if target.probes else []
            self._targets[name] = target
            self.model.notes += self._reshaped(target)
        return self._targets[name]

    def take(self, target: Target) -> None:
        """Use a target in the place of the one of its name."""
        self._targets[target.name] = target

    def keep_cache(self, target: str) -> None:
        """Leave keys and values as they are after all."""
        assert self.rounding_cache is not None
        self.lost, self.rounding_cache = self.lost - self.rounding_cache, None
        for model in {id(model): model for model in (self.target(target).model, self.target(target).model.stored)}.values():
            keep_cache(model.module)
        for runtime in self._runtimes.values():
            runtime.narrow_cache = False

    def _reshaped(self, target: Target) -> list[str]:
        """What the target's loader makes of cuts and of fewer blocks, asked where the request may have them."""
        if target.probe is None:
            return []
        plan, method = (getattr(self.settings, name, None) for name in ("plan", "method"))
        options: Sequence[Option] = [Option.parse(text) for text in plan.options.values()] if plan is not None else []
        if plan is None:
            options = [method] if method is not None else list(self.menu(target.name))
        steps = [step for option in options for step in option.steps if isinstance(step, Dropper)]
        spans = [step for step in steps if isinstance(step, Spanner)]
        return target.probe.reshaped(cuts=len(spans) < len(steps), depth=bool(spans))

    @property
    def default_target(self) -> str:
        """Transformers for its causal language models, our container for all else."""
        return "transformers" if self.model.is_causal else "modicum"

    def possible_targets(self) -> list[str]:
        """Targets that can hold this model, but for those that must be named; what refuses one that it might have had is noted."""
        found, unruled = [], None
        for name in (name for name, target in TARGETS.items() if not target.asked):
            try:
                self.target(name)
                self.check_rules(name, self.menu(name))
            except ModelError as error:
                if self.model.config is not None:
                    self._note(f"target {name}: was left out, {error}")
            except SettingError as error:
                unruled = error
                self._note(f"target {name}: was left out, {error}")
            else:
                found.append(name)
        if unruled is not None and not found:
            raise unruled
        return found

    def _note(self, note: str) -> None:
        if note not in self.model.notes:
            self.model.notes.append(note)

    def menu(self, target: str) -> Menu:
        """What may be chosen for a target: the request's menu, or the default."""
        asked = self.settings.menu
        require_choices(asked or ())
        menu = Menu(asked) if asked is not None else default_menu(self.target(target), self.settings.group)
        if (taking := self.taking) is not None:
            menu = Menu(taking.menu(menu, menu.declared), suits=menu.suits, declared=menu.declared)
        menu = self.ruled(menu)
        if self.most is None or not menu.declared:
            return menu
        menu = menu.rounding() if self.rounding else menu
        return menu.leaving_out(self._far_below(target, menu, self.most))

    def _far_below(self, target: str, menu: Menu, most: int) -> frozenset[str]:
        """What such a budget has no use for; noted, for it may have been wanted."""
        if target not in self._unused:
            less = NEAR if self.rounding else LESS
            self._unused[target] = left_out = far_below(self._of_weights(target, menu).table(), most, less)
            if left_out and not self.rounding:
                self._note(f"menu: options of far fewer bits than {readable(most)} pays for were not measured; --menu names others")
        return self._unused[target]

    def _of_weights(self, target: str, menu: Menu) -> Sizing:
        options = Menu(weight_options(menu), suits=menu.suits, declared=True, rules=menu.rules)
        return Sizing(self.target(target), options, {}, self.kept, _forms=self._zeros)

    def scouted(self, target: str) -> bool:
        """Whether the budget needs nothing but rounding; noted, for more may have been wanted."""
        menu = self.menu(target).rounding()
        if self.most is None or not menu.declared or self.settings.ram is not None:
            return False
        found = rounding_suffices(self._of_weights(target, menu), menu, self.most, self.data.validation)
        if found:
            self._unused.clear()
            self._note(
                f"menu: {readable(self.most)} hold every layer rounded alike, which is near-lossless; nothing but rounding was measured; "
                "--menu names others"
            )
        return found

    @property
    def taking(self) -> Taking | None:
        """How the request has inputs taken beside weights of eight bits."""
        return Taking.of(self.settings.activations, self.settings.activation_scale)

    def ruled(self, menu: Menu) -> Menu:
        """A menu under the rules of the request; what is kept as it is has none."""
        rules = self.settings.set
        return menu.under(cache(lambda site: () if self.kept(site) else ruling(rules, site))) if rules else menu

    def sizing(self, target: str) -> Sizing:
        """Makes tables for a target."""
        menu = self.menu(target)
        return Sizing(self.target(target), menu, self.cuts if cutters(menu) else {}, self.kept, _forms=self._zeros)

    def runtime(self, target: str, batch: int, context: int, cuts: Mapping[str, Site]) -> Runtime:
        """Prices in a target's runtime, the same ones however often they are asked for."""
        key = (target, batch, context, tuple(cuts))
        if key not in self._runtimes:
            self._runtimes[key] = RUNTIMES.get(target, Runtime)(
                self.model, self.script, batch=batch, context=context, example=self.data.calibration[0], cuts=cuts
            )  # fmt: skip
            self._runtimes[key].narrow_cache = getattr(self.settings, "kv", None) is not None
        return self._runtimes[key]

    @cached_property
    def cuts(self) -> dict[str, Site]:
        """The model's coupled cuts and experts by name."""
        found = {site.name: site for site in coupled_cuts(self.model, self.script, self.data.calibration[0])}
        return found | expert_sites(self.model, self.script)

    def kept(self, site: Site) -> bool:
        """Whether the request keeps a site as it is."""
        names = [site.name, *(name for unit in site.units for name in names_of(unit))]
        return any(matches(pattern, name) for pattern in self.settings.keep for name in names)

    def check_rules(self, target: str, menu: Menu) -> None:
        """Raise ``SettingError`` for rules that a target cannot hold; what they do not reach is noted."""
        for told in check_rules(self.target(target), menu, self.settings.set):
            self._note(told)

    def check_kept(self) -> None:
        """Raise ``SettingError`` for a pattern that names nothing: a slip would cost what it was meant to save."""
        units = self.model.units.values()
        check_names(self.settings.set, list(units))
        names = {name for unit in units for name in names_of(unit)}
        for pattern in self.settings.keep:
            if not any(matches(pattern, name) for name in names):
                raise SettingError(f"--keep {pattern!r}: must match a layer, matches none. {near(pattern, {u.module for u in units})}")

    def plan_memory(self, options: Iterable[Option], ranks: Ranks = LONE) -> SpillPool:
        """Plan a run of ``options``: which statistics are whole, and where activations go. Raises ``BudgetError`` where nothing fits."""
        # What only refers to itself takes long to find, and matters where it may be a good part of what is free.
        trim(circles=self.settings.ram is not None or 8 * own_memory() > free_memory())
        free = min(ranks.gather("free memory", free_memory(self.settings.ram) // ranks.beside))
        batch = max(self.data.calibration, key=lambda batch: (count_rows(batch), count_tokens([batch])))
        wider = max((self.model, self.felt), key=lambda model: model.computed.itemsize)
        self.memory = planned(wider, self.script, batch, options, self.settings.ram, free)
        self.model.notes += [event for event in self.memory.events if event not in self.model.notes]
        return SpillPool(self.memory.activations, tight=self.settings.ram is not None)


def _glimpse(model: Model, settings: Settings, data: Splits | None) -> tuple[Batch, str, dict[str, Any], int]:
    """A row to outline the model with, where data comes from, what was found there, and the tokens that a run would calibrate on."""
    if data is not None:
        return shortened(one_row(data.calibration[0]), _FEW), data.source, data.taken, count_tokens(data.calibration)
    if media.kind_of(model.module, settings.data):
        few = _split(model, replace(settings, samples=1, test_samples=1), None)
        return one_row(few.calibration[0]), few.source, few.taken, min(settings.samples, few.taken["files"])
    taken = extent(settings.data, model.tokenizer, settings.tokens, settings.text_column)
    asked = settings.samples * settings.tokens
    ids = torch.arange(min(settings.tokens, _FEW))[None] % (getattr(model.config.get_text_config(), "vocab_size", None) or 2)
    return {"input_ids": ids}, settings.data or "shipped", taken, asked if taken["at_least"] else min(asked, taken["tokens"])


def opened(source: str | Path | nn.Module | Model, settings: Settings) -> Model:
    """Open the model as the settings allow."""
    chosen_device(settings.device)  # before anything is read
    if torch.get_default_dtype() not in (torch.float32, torch.float64):
        raise SettingError(
            f"torch's default dtype: must be float32 or float64, in which sums are made, is {str(torch.get_default_dtype())[6:]}. "
            "Set it with torch.set_default_dtype; the model may keep its own."
        )
    if isinstance(source, nn.Module):
        source = apart(source)
    return open_source(
        source, allow_pickle=settings.allow_pickle, trust_remote_code=settings.trust_remote_code,
        allow_quantized_source=settings.allow_quantized_source,
    )  # fmt: skip


def _split(model: Model, settings: Settings, batches: Any) -> Splits:
    if batches is not None:
        return without_labels(model.module, from_batches(batches, seed=settings.seed))
    if media.kind_of(model.module, settings.data) and model.directory is not None:
        return media.from_files(
            settings.data, model.module, model.directory, samples=settings.samples, seed=settings.seed, batch=settings.micro_batch,
            test_samples=settings.test_samples, text_column=settings.text_column,
        )  # fmt: skip
    return from_text(
        settings.data, model.tokenizer, samples=settings.samples, tokens=settings.tokens, seed=settings.seed,
        batch=settings.micro_batch, test_samples=settings.test_samples, text_column=settings.text_column,
        write=partial(written_by, model, settings),
    )  # fmt: skip


def chosen_device(name: str) -> torch.device:
    """Where models run and their inputs are measured.

    Raises ``SettingError``: a GPU that was asked for is never replaced by the CPU without a word.
    """
    if name in ("auto", "cpu"):
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number.isdecimal() or name == kind):
        raise SettingError(f"device {name!r}: must be auto, cpu, cuda or a GPU's number as in cuda:0.")
    if not torch.cuda.is_available():
        raise SettingError(f"device {name!r}: must be auto or cpu, there is no GPU that torch can use.")
    return torch.device(kind, int(number or os.environ.get("LOCAL_RANK", "0")))  # each rank its own
