"""A container whose weights are in codes, written for Transformers: the same whole numbers, nothing chosen or rounded anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from modicum.core.errors import ModelError, SettingError
from modicum.core.method import Change
from modicum.core.plan import Plan
from modicum.core.progress import Quiet
from modicum.core.tensorfile import Shards
from modicum.data.splits import Batch, one_row
from modicum.export import TARGETS
from modicum.export.container import FILE, read_body
from modicum.export.expand import Expansion, coded_stages, expand, forms_of, unheld
from modicum.fit.choosing import Chosen
from modicum.fit.made import Made
from modicum.fit.making import Making
from modicum.fit.request import Request
from modicum.fit.run import Page, Result, Run
from modicum.fit.scene import Scene
from modicum.forms import Cut, Dense, Form
from modicum.judge.quality import streamed
from modicum.measure.asked import asked
from modicum.measure.moving import same_outputs, with_values
from modicum.measure.settings import common
from modicum.models.model import Model
from modicum.sweep.makers import Maker, makers
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.spill import SpillPool
from modicum.work.meter import Meter
from modicum.work.store import FormStore

# What of a form's description names codes, wherever they stand in it.
_KIND = "coded"


def holds_codes(directory: Path) -> bool:
    """Whether a directory is a container with weights in codes."""
    if not (directory / FILE).exists():
        return False
    return any(_has_codes(described["form"]) for described in read_body(directory)["units"].values() if isinstance(described, dict))


def _has_codes(described: Any) -> bool:
    if isinstance(described, Mapping):
        return described.get("kind") == _KIND or any(_has_codes(value) for value in described.values())
    return isinstance(described, list) and any(map(_has_codes, described))


def expanded(
    directory: Path, model: str | Model, plan: Plan, *, out: Path, dense: bool = False, progress: Quiet | None = None, ranks: Ranks = LONE,
    page: Page | None = None, **settings: Any,
) -> Result:  # fmt: skip
    """Write the container in ``directory``, made of ``model`` by ``plan``, for Transformers: codes as whole numbers of 4 or 8 bits.

    Weight for weight they are the same values. What cannot be whole numbers there is refused, or with ``dense`` written whole. Raises
    ``ModicumError`` kinds.
    """
    own = Plan("transformers", plan.options, plan.cuts, plan.notes)
    request = Request(plan=own, **common(target="transformers", out=out, **settings))
    said = asked(request, model=model, data=settings.get("data"), plan=own)
    return _Expanded(directory, dense, model, request, None, said, progress, None, ranks, None, page).run()


class _Expanded(Run):
    """A run whose forms are read."""

    def __init__(self, directory: Path, dense: bool, *given: Any):
        super().__init__(*given)
        self.directory, self.body, self.dense = directory, read_body(directory), dense
        self.given = self.scene.model
        self.original = self._as_written()

    def _as_written(self) -> Model:
        """The model with what the container holds whole and otherwise than the model: turned, smoothed or healed beside the codes."""
        weights, subject = self.given.stored.weights, self.scene.subject
        with Shards(self.directory) as shards:
            beside = {weights.first[name]: shards.read(name) for name in shards.names() if ":" not in name and name in weights.first}
        values = {name: value for name, value in beside.items() if not torch.equal(value, weights.read(name))}
        if not values:
            return self.given
        self.events.append(
            f"export: {len(values)} weights beside the codes are the container's, not the model's, among them {min(values)}."
        )
        return subject.compute.of(with_values(self.given.stored, values))

    @override
    def _check(self) -> None:
        """Read the container and move its steps. Raises ``ModelError`` for what the target cannot hold: before any work."""
        if self.scene.target.name != "transformers":
            raise SettingError(f"export: codes are expanded for transformers, not for {self.scene.target.name}.")
        forms, script = self._read(), self.scene.script
        self.dropped = tuple(self.body["dropped"])
        if reason := self.scene.target.holds(
            Change({name: form for name, form in forms.items() if isinstance(form, Cut)}, {}, self.dropped)
        ):
            raise ModelError(f"export: target transformers cannot hold what was cut: {reason}. Pass --target modicum.")
        target, batch = self.scene.target, self.scene.data.calibration[0]
        strange = unheld(forms, self.original.units, target.refusal)
        stages = [tuple(name for name in stage if name not in self.gone) for stage in script.stages]
        stages = coded_stages(forms, stages)
        with self.meter.stage("moving", 1):
            found = makers(self.original, script, batch, stages)
            plain = forms | {name: Dense(forms[name].dense()) for name in strange if not isinstance(forms[name], Cut)}
            self.scene, self.expansion = self._moved(plain, stages, found)
            if not self._as_before(forms, one_row(batch)):
                self.events.append("export: moved steps do not give the outputs of before; they are in the whole numbers instead.")
                self.scene, self.expansion = self._moved(plain, stages, {})
        self._refuse(strange | self.expansion.refused)
        if stages:
            self.events.append(
                f"export: steps of columns moved into what makes the input of {self.expansion.moved} sets of weights, and are in the whole "
                f"numbers of {self.expansion.shifted}."
            )

    @property
    def gone(self) -> set[str]:
        """Units of blocks that were left out."""
        units = self.original.units.values()
        return {unit.name for unit in units if self.scene.script.home(unit.name, self.body["dropped"])}

    def _read(self) -> dict[str, Form]:
        """The forms in the container. Raises ``ModelError`` where they are not of this model."""
        units, found = self.original.units, {}
        for unit, form in forms_of(self.directory):
            if unit.name not in units or units[unit.name].shape != form.shape:
                raise ModelError(f"{self.directory}: {unit.name} must be a weight of {self.original.name}, is not. Check the model.")
            found[unit.name] = form
        with Shards(self.directory) as shards:
            self._require_rest(shards)
        return found

    def _require_rest(self, shards: Shards) -> None:
        """Raise ``ModelError`` where the container has biases that the model has none of, which only a container holds."""
        weights = self.original.stored.weights
        for name in shards.names():
            if name.endswith(".bias") and ":" not in name and name not in weights.first:
                raise ModelError(f"export: target transformers cannot hold the bias {name} that compression adds. Pass --target modicum.")

    def _refuse(self, refused: Mapping[str, str]) -> None:
        if not refused:
            return
        name, why = next(iter(refused.items()))
        more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
        if not self.dense:
            raise ModelError(
                f"export: {name}{more} cannot be whole numbers for target transformers, {why}. Pass --dense to write such weights whole, or "
                "keep --target modicum."
            )
        self.events.append(f"export: {len(refused)} weights are written whole: " + "; ".join(f"{n}, {w}" for n, w in refused.items()))

    def _moved(
        self, forms: Mapping[str, Form], stages: list[tuple[str, ...]], found: Mapping[tuple[str, ...], Maker]
    ) -> tuple[Scene, Expansion]:
        """The forms to write, and the scene of the model that has the factors that moved."""
        scene, script = self.scene, self.scene.script
        target = TARGETS["transformers"](self.original, script)
        target.off, target.probe = scene.target.off, scene.target.probe
        expansion = expand(self.original, forms, stages, found, scene.sites, target.refusal)
        prepared = scene.subject.compute.of(with_values(self.original.stored, expansion.parameters))
        target.model = prepared
        subject = dataclasses.replace(
            scene.subject, model=prepared, given=None if self.original is self.given else self.given, _targets={target.name: target}, _runtimes={}
        )  # fmt: skip
        return dataclasses.replace(scene, subject=subject, target=target), expansion

    def _as_before(self, forms: Mapping[str, Form], row: Batch) -> bool:
        """Whether what is written answers as the container does, to the bit."""
        answers = lambda model, made: [
            output for _, output in streamed(model, [row], self.scene.script, made, dropped=frozenset(self.dropped), pool=self.pool)
        ]
        return same_outputs(answers(self.original.twin(), forms), answers(self.scene.model.twin(), self.expansion.forms))

    @override
    def _making(self, partial: Path) -> Making:
        return _Taking(self.scene, partial, self.pool, self.meter, self.original, self.expansion, self.dropped, self.events)


class _Taking(Making):
    """Takes forms as they were read."""

    def __init__(
        self, scene: Scene, partial: Path, pool: SpillPool, meter: Meter, original: Model, expansion: Expansion, dropped: Sequence[str],
        events: Sequence[str],
    ):  # fmt: skip
        super().__init__(scene, partial, pool, meter)
        self.original, self.expansion, self.dropped, self.before = original, expansion, tuple(dropped), events

    @override
    def run(self, chosen: Chosen) -> Made:
        self.events = list(dict.fromkeys([*self.before, *chosen.events]))
        chosen.plan.write(self.partial / "plan.json")
        (self.partial / "assembly").mkdir(exist_ok=True)
        store = FormStore(self.partial / "assembly" / "forms", self.ranks)
        for block in ["", *self.original.blocks]:
            mine = {
                name: form for name, form in self.expansion.forms.items() if self.scene.script.home(name, self.original.blocks) == block
            }
            store.put(block or "trunk", mine)
        return _Same(
            self.scene,
            Change(dropped=self.dropped),
            store,
            self.pool,
            {},
            before=self.scene.subject.original if self.scene.subject.given else self.original,
        )


@dataclasses.dataclass(frozen=True)
class _Same(Made):
    """Forms for a model whose steps were moved; what they lose is against the one before, or the one that came."""

    before: Model = dataclasses.field(kw_only=True)

    @property
    @override
    def original(self) -> Model:
        return self.before
