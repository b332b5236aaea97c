"""The account of a run: everything that was done, measured and verified, as a versioned JSON value."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modicum.core.plan import Plan, Table
from modicum.core.unit import Site, Unit
from modicum.data.splits import count_tokens
from modicum.fit.store import FormStore
from modicum.sweep import Script

if TYPE_CHECKING:
    from modicum.fit.run import Run

RECEIPT_FORMAT, RECEIPT_VERSION = "modicum-receipt", 1


def untreated(run: Run, forms: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Weights of layers that stay as they were, each with a reason from the closed set, largest first."""
    in_sites = {unit.name: site for site in run.sites for unit in site.units}
    rows = []
    for unit in run.model.units.values():
        if unit.name in forms or Script.home(unit.name, run.change.dropped):
            continue
        if reason := run.target.refusal(unit):
            rows.append(_row(unit, reason))
        elif run.kept(in_sites[unit.name]) if unit.name in in_sites else False:
            rows.append(_row(unit, "kept by request"))
        elif unit.name not in in_sites:
            rows.append(_row(unit, "no option fits"))
        elif forms:
            rows.append(_row(unit, "kept by plan"))
    return sorted(rows, key=lambda row: (-row["bytes"], row["unit"]))


def _row(unit: Unit, reason: str) -> dict[str, Any]:
    return {"unit": unit.name, "bytes": unit.dense_bytes, "reason": reason}


def build_receipt(
    run: Run,
    plan: Plan,
    table: Table | None,
    forms: FormStore,
    predicted: int,
    actual: int,
    verification: dict,
    quality: dict,
    final: Path,
) -> dict[str, Any]:
    """Everything that was done, measured and verified, as a versioned JSON value."""
    import transformers

    import modicum

    model, request = run.model, run.request
    gone = run.change.dropped
    treated = sum(unit.dense_bytes for unit in model.units.values() if unit.name in forms or Script.home(unit.name, gone))
    layer_bytes = sum(unit.dense_bytes for unit in model.units.values())
    harms = {site: {choice.option: choice for choice in found} for site, found in table.choices.items()} if table else {}
    rows = [_site_row(run, site, plan, forms, harms.get(site.name, {})) for site in run.sites]
    return {
        "format": RECEIPT_FORMAT, "version": RECEIPT_VERSION,
        "model": {
            "name": model.name, "class": type(model.module).__name__, "parameters": model.parameters, "dtype": str(model.dtype)[6:],
            "blocks": len(model.blocks), "units": len(model.units), "hash": run.model_hash(),
            "files": {path.name: _sha256(path) for path in run.source_files()}, "notes": model.notes,
        },
        "request": {
            "budget": str(request.budget) if request.budget else None, "method": str(request.method) if request.method else None,
            "plan": request.plan is not None, "target": run.target_name, "keep": list(request.keep), "allocator": request.allocator,
            "menu": [str(option) for option in request.options(run.target_name)], "harm": request.harm,
            "samples": request.samples, "tokens": request.tokens, "batch": request.batch, "test_samples": request.test_samples,
        },
        "data": {"source": run.data.source, "notes": list(run.data.notes), "hashes": run.data.hashes,
                 "calibration_tokens": count_tokens(run.data.calibration), "test_tokens": count_tokens(run.data.test)},
        "seed": request.seed,
        "versions": {"modicum": modicum.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version(), "threads": torch.get_num_threads(), "device": str(run.device)},
        "bytes": {
            "original": model.dense_bytes, "predicted": predicted, "actual": actual,
            "allowed": request.budget.bytes(model.parameters) if request.budget else None,
            "bits_per_weight": 8 * actual / model.parameters,
            "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(final.glob("*.safetensors"))},
        },
        "coverage": {
            "treated_bytes": treated, "layer_bytes": layer_bytes, "share": treated / max(layer_bytes, 1), "untreated": untreated(run, forms),
        },
        "sites": rows, "predicted_harm": sum(row["harm"] or 0.0 for row in rows) if table else None,
        "quality": quality, "verification": verification, "events": run.events, "stages": run.meter.stages,
    }  # fmt: skip


def _site_row(run: Run, site: Site, plan: Plan, forms: FormStore, choices: Mapping[str, Any]) -> dict[str, Any]:
    gone = {unit.name for unit in site.units if Script.home(unit.name, run.change.dropped)}
    named = [plan.options.get(site.name) or plan.options.get(unit.name, "keep") for unit in site.units]
    option = "dropped" if len(gone) == len(site.units) else ", ".join(dict.fromkeys(named))
    choice = choices.get(option)
    sizes = [0 if u.name in gone else forms[u.name].nbytes if u.name in forms else u.dense_bytes for u in site.units]
    return {
        "site": site.name, "kind": site.kind, "option": option, "weights": site.size, "data_free": site.data_free,
        "original_bytes": sum(unit.dense_bytes for unit in site.units), "bytes": sum(sizes), "harm": choice.harm if choice else None,
    }  # fmt: skip


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
