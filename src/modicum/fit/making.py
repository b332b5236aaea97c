"""From a plan to the forms of its weights: what it leaves out, what the output feels of each row, rounds, and the assembly."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from modicum.core.errors import ModelError, SettingError, listed
from modicum.core.memory import trim
from modicum.core.method import Change
from modicum.core.option import Option
from modicum.fit import explicit
from modicum.fit.assemble import Assembly
from modicum.fit.choosing import Chosen
from modicum.fit.made import Made, changed
from modicum.fit.rounds import Begun, begin
from modicum.fit.scene import Scene
from modicum.fit.structure import reshaped
from modicum.measure import felt, slopes
from modicum.measure.survey import first_rows
from modicum.sweep import Sensitivity, output_gradients
from modicum.sweep.spill import SpillPool
from modicum.table.taking import bits_of, untaken
from modicum.work.meter import Meter
from modicum.work.store import load_sensitivities, save_sensitivities


class Making:
    """Makes what a plan says in the run's folder ``partial``; ``begun`` is what rounds before the last came to."""

    def __init__(self, scene: Scene, partial: Path, pool: SpillPool, meter: Meter):
        self.scene, self.ranks, self.partial, self.pool, self.meter = scene, scene.ranks, partial, pool, meter
        self.events: list[str] = []
        self.begun = Begun()

    def run(self, chosen: Chosen) -> Made:
        """The forms of a plan, in a folder that belongs to it; ``events`` are the choice's and those since."""
        scene, partial, plan, self.events = self.scene, self.partial, chosen.plan, list(chosen.events)
        plan.write(partial / "plan.json")
        shutil.rmtree(partial / "levels", ignore_errors=True)
        place = partial / self.ranks.first("place", lambda: "plain" if chosen.search.get("plain", {}).get("taken") else "assembly")
        place.mkdir(exist_ok=True)
        change = self.ranks.first("change", lambda: reshaped(scene, plan, place / "change.safetensors", self.pool, self.meter))
        self.events += change.events
        dropped = frozenset(change.dropped)
        options = {name: option for name, option in explicit.unit_options(scene, plan).items() if not scene.script.home(name, dropped)}
        wrapping = [step for option in scene.options for step in option.steps if step.wraps] if scene.request.plan is None else []
        for bits in sorted({bits_of(step) for step in wrapping}):
            if left := untaken(options.items(), bits):
                word = "four" if bits == 4 else "eight"
                self.events.append(
                    f"activations: {len(left)} weights of {word} bits take their inputs as they are: {listed(sorted(left))}."
                )
        measured = [partial / "measure" / "sensitivities.safetensors"] if scene.request.harm == "covariance" else []
        felts = self._feel(options.values(), [*measured, place / "gradients.safetensors"])
        self.events += slopes.take(
            scene.subject, slopes.asked({name: [option] for name, option in options.items()}),
            first_rows(scene.data.calibration, scene.request.gradient_samples),
            [partial / "measure" / "slopes.safetensors", partial / "slopes.safetensors"], self.pool, self.meter, self.ranks,
        )  # fmt: skip
        self.begun = self._rounds(options, change)
        assembly = Assembly(
            changed(scene, self.begun.values), scene.script, options, place, start=change.forms, biases=change.biases, dropped=dropped,
            ranks=self.ranks, felts=felts,
        )  # fmt: skip
        with self.meter.stage("assemble", len(scene.model.blocks)):
            tick = lambda _: self.meter.progress.step()
            forms = assembly.run(scene.data.calibration, seed=scene.request.seed, pool=self.pool, tick=tick)
        self.events += assembly.events
        return Made(scene, change, forms, self.pool, options, self.begun.values)

    def _rounds(self, options: Mapping[str, Option], change: Change) -> Begun:
        """What rounds before the last came to. Raises ``SettingError`` where parts are left out, which cannot be done in rounds."""
        if self.scene.request.rounds == 1:
            return Begun()
        if change.forms or change.dropped:
            raise SettingError("rounds: must stand beside a plan that leaves no blocks, heads or channels out. Leave one of them out.")
        begun = begin(self.scene, options, self.partial, self.pool, self.meter)
        self.events += begun.events
        return begun

    def _feel(self, options: Collection[Option], places: Sequence[Path]) -> dict[str, torch.Tensor]:
        """See how much the output feels each row, where an option asks and no measurement has told; how it feels rows together, where one asks.

        Gradients that one of ``places`` has are not taken again; what is taken is kept at the last.
        """
        subject = self.scene.subject
        steps = not subject.script.raised and self.scene.measured is None and felt.wanted(subject, options)
        together = felt.together(subject, options)
        if not steps and not together:
            return {}
        kept = [path for path in places if all(self.ranks.gather(f"{path.name} kept", path.exists()))]
        try:
            found = load_sensitivities(kept[0]) if kept else self._gradients(together)
        except ModelError as error:
            self.events.append(
                f"gradients: rows are treated alike and tables without data, how much the output feels them is not known ({error})"
            )
            return {}
        if together and not kept:
            save_sensitivities(places[-1], found)
        if steps:
            felt.set_by(subject.script, subject.model, found)
        felts = {name: one.covariance for name, one in found.items() if one.covariance is not None} if together else {}
        self.pool.admit(felts)
        del found
        trim()
        return felts

    def _gradients(self, together: bool) -> dict[str, Sensitivity]:
        """Gradients of the output by unit, with those of its rows ``together`` or without."""
        subject, request = self.scene.subject, self.scene.request
        batches = first_rows(subject.data.calibration, request.gradient_samples)
        self.meter.progress.start("gradients", len(batches))
        with self.meter.stage("gradients"):
            return output_gradients(
                subject.felt, batches, subject.script, request.seed, covariance=together, widest=felt.widest(subject), pool=self.pool,
                ranks=self.ranks, tick=self.meter.progress.step,
            )  # fmt: skip
