"""The account of a run: everything that was done, measured and verified, as a versioned JSON value."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modicum.core.budget import readable
from modicum.core.errors import listed
from modicum.core.log import LOG
from modicum.core.option import KEEP
from modicum.core.plan import Choice, Plan, Table
from modicum.core.unit import Site, Unit
from modicum.fit.choosing import Chosen
from modicum.fit.made import Made
from modicum.fit.receipts import RECEIPT_FORMAT, RECEIPT_VERSION
from modicum.fit.scene import Scene
from modicum.models.model import Model
from modicum.models.structure import plain_parameters
from modicum.sweep import Script
from modicum.table.findings import DEPTH, GONE
from modicum.table.sizing import level_of

# What stands for the option of a site whose block was left out.
DROPPED = "dropped"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to: what was chosen and made, the folder ``final`` of its files, and what was found when they were held against it."""

    made: Made
    chosen: Chosen
    final: Path
    predicted: int
    actual: int
    verification: dict[str, Any]
    quality: dict[str, Any]
    verdict: str
    asked: Mapping[str, Any]
    texts: list[dict[str, str]]
    by_block: dict[str, Any]
    events: list[str]
    stages: dict[str, dict[str, float]]
    healing: dict[str, Any]


def untreated(scene: Scene, forms: Mapping[str, Any], dropped: Collection[str] = ()) -> list[dict[str, Any]]:
    """Parameters that stay as they were, each with a reason from the closed set, largest first."""
    in_sites = {unit.name: site for site in scene.sites for unit in site.units}
    rows = []
    for unit in scene.model.units.values():
        if unit.name in forms or Script.home(unit.name, dropped):
            continue
        if reason := scene.target.refusal(unit):
            rows.append(_row(unit, reason))
        elif scene.subject.kept(in_sites[unit.name]) if unit.name in in_sites else False:
            rows.append(_row(unit, "kept by request"))
        elif unit.name not in in_sites:
            rows.append(_row(unit, "no option fits"))
        elif forms:
            rows.append(_row(unit, "kept by plan"))
    gone = {name for block in dropped for name in scene.model.blocks[block].parameters}
    rows += [{"unit": name, "bytes": scene.model.bytes_of(name), "reason": reason}
             for name, reason in plain_parameters(scene.model).items() if name not in gone]  # fmt: skip
    return sorted(rows, key=lambda row: (-row["bytes"], row["unit"]))


def _reasons(model: Model) -> dict[str, str]:
    """Every parameter, with the reason why it is no unit's, or an empty string."""
    return dict.fromkeys(model.weights.names, "") | plain_parameters(model)


def _row(unit: Unit, reason: str) -> dict[str, Any]:
    return {"unit": unit.name, "bytes": unit.dense_bytes, "reason": reason}


def build_receipt(outcome: Outcome) -> dict[str, Any]:
    """Everything that was done, measured and verified, as a versioned JSON value."""
    import transformers

    import modicum

    made, chosen, scene, final = outcome.made, outcome.chosen, outcome.made.scene, outcome.final
    model, request, forms, gone = scene.model, scene.request, made.forms, made.change.dropped
    table, picks = chosen.table, chosen.picks
    treated = sum(unit.dense_bytes for unit in model.units.values() if unit.name in forms or Script.home(unit.name, gone))
    layer_bytes = sum(model.bytes_of(name) for name, reason in _reasons(model).items() if reason != "vector")
    choices = {site: table.choices[site][index] for site, index in picks.items()} if table is not None else {}
    rows = [_structural_row(name, option, choices.get(name)) for name, option in _structural(scene, chosen.plan, table, choices).items()]
    rows += [_site_row(made, site, chosen.plan, choices.get(site.name)) | {"beyond": chosen.beyond.get(site.name)} for site in scene.sites]
    return {
        "format": RECEIPT_FORMAT, "version": RECEIPT_VERSION,
        "model": {
            "name": model.name, "class": type(model.module).__name__, "parameters": model.parameters, "dtype": str(model.dtype)[6:],
            "blocks": len(model.blocks), "units": len(model.units), "hash": model.hash(),
            "files": {path.name: _sha256(path) for path in model.files}, "notes": model.notes,
            "opened": model.opened,
        },
        "compute": {"asked": request.compute} | scene.subject.compute.to_json(),
        "asked": dict(outcome.asked),
        "request": {
            "budget": str(request.budget) if request.budget else None, "method": str(request.method) if request.method else None,
            "plan": request.plan is not None, "target": scene.target.name, "keep": list(request.keep),
            "set": [str(rule) for rule in request.set], "allocator": request.allocator,
            "activations": request.activations, "activation_scale": request.activation_scale, "kv": request.kv,
            "rotate": request.rotate, "importance": request.importance, "smooth": request.smooth, "starved": request.starved,
            "menu": [str(option) for option in scene.subject.menu(scene.target.name)], "harm": request.harm,
            "samples": request.samples, "tokens": request.tokens, "micro_batch": request.micro_batch, "test_samples": request.test_samples,
            "text_column": request.text_column,
        },
        "data": {"source": scene.data.source, "notes": list(scene.data.notes), "hashes": scene.data.hashes, "taken": scene.data.taken,
                 "calibration_tokens": scene.script.count_tokens(scene.data.calibration),
                 "test_tokens": scene.script.count_tokens(scene.data.test)},
        "seed": request.seed,
        "versions": {"modicum": modicum.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version(), "threads": torch.get_num_threads(),
                     "ranks": scene.ranks.count, "device": str(scene.model.weights.device)},
        "bytes": {
            "original": model.dense_bytes, "predicted": outcome.predicted, "actual": outcome.actual,
            "allowed": request.budget.bytes(model.parameters) if request.budget else None,
            "bits_per_weight": 8 * outcome.actual / model.parameters,
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in _weights(final)},
        },
        "values": {"original": model.parameters, "actual": _values(made)}, "macs": _macs(outcome),
        "coverage": {
            "treated_bytes": treated, "layer_bytes": layer_bytes, "share": treated / max(layer_bytes, 1),
            "share_of_all": treated / max(model.dense_bytes, 1), "untreated": untreated(scene, forms, gone),
        },
        "sites": rows, "frontier": chosen.frontier, "search": chosen.search, "predicted_harm": table.forecast(picks) if table is not None else None,
        "quality": outcome.quality, "verdict": outcome.verdict, "verification": outcome.verification,
        "by_block": outcome.by_block, "texts": outcome.texts, "events": outcome.events + _grown(rows), "stages": outcome.stages,
    } | ({"healing": outcome.healing} if outcome.healing else {})  # fmt: skip


def _grown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """An event where what was made of weights takes more bytes than they did."""
    found = [row for row in rows if row["kind"] not in ("cut", "span") and row["bytes"] > row["original_bytes"]]
    if not found:
        return []
    taken, had = (readable(sum(row[name] for row in found)) for name in ("bytes", "original_bytes"))
    return [
        f"bytes: {taken} were made of {had} on {listed(row['site'] for row in found)}. Choose an option that stores less there, or keep."
    ]


def tell(receipt: Mapping[str, Any]) -> None:
    """Tell who listens what every site got, what it came to, and what happened."""
    for row in receipt["sites"]:
        harm = f", harm {row['harm']:.3g}" if row["harm"] is not None else ""
        LOG.info("%s: %s, %d bytes of %d%s", row["site"], row["option"], row["bytes"], row["original_bytes"], harm)
    for row in receipt["coverage"]["untreated"]:
        LOG.info("%s: stays as it is, %s, %d bytes", row["unit"], row["reason"], row["bytes"])
    for event in receipt["events"]:
        LOG.warning("%s", event)
    LOG.info("%s", receipt["verdict"])


def _site_row(made: Made, site: Site, plan: Plan, choice: Choice | None) -> dict[str, Any]:
    forms, gone = made.forms, {unit.name for unit in site.units if Script.home(unit.name, made.change.dropped)}
    named = [plan.options.get(site.name) or plan.options.get(unit.name, "keep") for unit in site.units]
    option = DROPPED if len(gone) == len(site.units) else ", ".join(dict.fromkeys(named))
    sizes = [0 if u.name in gone else forms[u.name].nbytes if u.name in forms else u.dense_bytes for u in site.units]
    return {
        "site": site.name, "kind": site.kind, "option": option, "weights": site.size, "data_free": site.data_free,
        "original_bytes": sum(unit.dense_bytes for unit in site.units), "bytes": sum(sizes), "harm": choice.harm if choice else None,
    }  # fmt: skip


def _values(made: Made) -> int:
    """Stored weight values: those of forms, and of every parameter that stands as it was."""
    model, forms = made.scene.model, made.forms
    units, gone = model.units.values(), {name for block in made.change.dropped for name in model.blocks[block].parameters}
    treated = {unit.parameter for unit in units if unit.name in forms}
    dense = [name for name in model.weights.names if name not in treated and name not in gone]
    beside = sum(unit.size for unit in units if unit.parameter in treated and unit.name not in forms)
    return sum(forms[name].values for name in forms) + beside + sum(model.weights.held(name).numel() for name in dense)


def _macs(outcome: Outcome) -> dict[str, Any]:
    """Multiply-adds of one forward pass on a row of the calibration sequences, whose shapes are told: before, after, and what was allowed."""
    scene = outcome.made.scene
    work, budget, batch = scene.script.work, scene.request.budget, scene.script.example(scene.data.calibration[0])
    named = batch.items() if isinstance(batch, dict) else enumerate(batch)
    return {
        "original": work.whole if work is not None else None, "actual": outcome.verification.get("multiply-adds"),
        "allowed": budget.multiplications(work.whole) if budget is not None and budget.macs is not None and work is not None else None,
        "pass": {str(name): list(value.shape) for name, value in named},
    }  # fmt: skip


def _structural(scene: Scene, plan: Plan, table: Table | None, chosen: Mapping[str, Choice]) -> dict[str, str]:
    """Options of the depth and of coupled cuts; those that were chosen alike in all blocks under the name of their choice."""
    units = {unit.name for unit in scene.model.units.values()} | {site.name for site in scene.sites}
    named = {name: option for name, option in plan.options.items() if name not in units}
    above = [] if table is None else [site for site in table.children if site not in named]
    alike = {site: level for site in above if (level := level_of(chosen[site].option)) not in (KEEP, GONE)}
    kinds = {site.rpartition(":")[2] for site in alike}
    return {name: option for name, option in named.items() if name == DEPTH or name.rpartition(":")[2] not in kinds} | alike


def _structural_row(name: str, option: str, choice: Choice | None) -> dict[str, Any]:
    return {
        "site": name, "kind": "span" if name == DEPTH else "cut", "option": option, "weights": 0, "data_free": "", "original_bytes": 0,
        "bytes": 0, "harm": choice.harm if choice is not None else None,
    }  # fmt: skip


def _weights(directory: Path) -> list[Path]:
    """Files that hold weights."""
    return sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".gguf"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
