"""What a plan changes of the model's structure: depth first, then coupled cuts."""

from __future__ import annotations

from pathlib import Path

from modicum.core.errors import SettingError
from modicum.core.method import Change
from modicum.core.option import Option
from modicum.core.plan import Plan
from modicum.drop._family import Dropper, SiteCutter, cut_sites
from modicum.fit.explicit import is_cut
from modicum.fit.scene import Scene
from modicum.sweep.spill import SpillPool
from modicum.table.findings import DEPTH
from modicum.work.meter import Meter
from modicum.work.store import load_change, save_change


def reshaped(scene: Scene, plan: Plan, path: Path, pool: SpillPool, meter: Meter) -> Change:
    """The structural change a plan asks for, made now or kept at ``path`` before an interruption."""
    if path.exists():
        return load_change(path)
    change = structural(scene, plan, pool, meter)
    if change.forms or change.dropped:
        save_change(path, change)
    return change


def structural(scene: Scene, plan: Plan, pool: SpillPool, meter: Meter) -> Change:
    """Of the whole model's depth first, then of coupled cuts. Raises ``SettingError`` where the target cannot hold it."""
    change, seed = Change(), scene.request.seed
    if DEPTH in plan.options:
        (step,) = Option.parse(plan.options[DEPTH]).steps
        assert isinstance(step, Dropper)
        with meter.stage("survey", 1):
            change = step.reshape(scene.model, scene.script, scene.data.calibration, pool, seed)
        _hold(scene, str(step), change)
    if wanted := _cuts(scene, plan):
        with meter.stage("cut", 1):
            cut = cut_sites(scene.model, scene.script, scene.data.calibration, pool, wanted, start=change.forms, seed=seed)
        change.forms |= cut.forms
        change.events += cut.events
        _hold(scene, "the cuts", change)
    return change


def _cuts(scene: Scene, plan: Plan) -> dict:
    """Coupled cuts of a plan: the site, its cutter, and the groups it keeps where they are said."""
    wanted = {}
    for name, text in plan.options.items():
        if name in plan.cuts or (name != DEPTH and is_cut(Option.parse(text))):
            (cutter,) = Option.parse(text).steps
            assert isinstance(cutter, SiteCutter)
            wanted[name] = (scene.subject.cuts[name], cutter, plan.cuts.get(name))
    return wanted


def _hold(scene: Scene, who: str, change: Change) -> None:
    if reason := scene.target.holds(change):
        raise SettingError(f"method {who}: target {scene.target.name} cannot hold its result: {reason}. Pass --target modicum.")
