"""What a run would do, without doing it: from the config, the headers of the weights, and a sample of the data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from modicum.core.budget import Budget
from modicum.core.errors import BudgetError
from modicum.core.option import KEEP, Option
from modicum.core.plan import Plan, Table
from modicum.core.unit import Site
from modicum.data.splits import count_tokens
from modicum.fit import explicit
from modicum.fit.account import untreated
from modicum.fit.choose import Chooser
from modicum.fit.scene import Scene
from modicum.runtime import memory
from modicum.table.menu import Menu, offered

# What is said of a budget of time.
UNTIMED = "time is only known once the model has run, which a dry run leaves out"
UNCOUNTED = UNTIMED.replace("time is", "multiply-adds are")
# The size of the products that this machine's speed is told by, and for how long.
_PRODUCT, _SECONDS = 512, 0.2
# What a run takes beside its large products, in multiples of them.
_BESIDE = 3.0


def forecast(scene: Scene) -> dict[str, Any]:
    """Sizes within reach, what would be treated and what not, and what it would take. Raises ``SettingError`` for a method or plan that cannot be."""
    explicit.check(scene)
    budget = scene.request.budget
    unknown = _unknown(budget) if scene.subject.planned else ""
    chooser = Chooser(scene.subject, scene.target.name, scene.request) if budget is not None and not unknown else None
    plan = scene.request.plan
    offers = scene.menu if plan is None else Menu([*scene.options])
    sizing = chooser.sizing if chooser is not None else replace(scene.subject.sizing(scene.target.name), menu=offers)
    menu, table = sizing.menu, chooser.table(None) if chooser is not None else sizing.table()
    smallest, largest = _reach(table) if plan is None else _planned(table, plan)
    tokens = scene.subject.planned or scene.script.count_tokens(scene.data.calibration)
    unfit = unknown or ("" if chooser is None else _unfit(chooser, table))
    model, work = scene.model, _operations(scene, tokens, len(menu))
    return {
        "format": "modicum-forecast", "version": 1, "model": model.name, "target": scene.target.name,
        "parameters": model.parameters, "original_bytes": model.dense_bytes, "smallest_bytes": smallest, "largest_bytes": largest,
        "smallest_bpw": 8 * smallest / model.parameters, "blocks": len(model.blocks), "units": len(model.units),
        "sites": [{"name": site.name, "kind": site.kind, "weights": site.size, "data_free": site.data_free,
                   "options": _options(scene, site, menu)} for site in scene.sites],
        "untreated": untreated(scene, {}), "data": {"source": scene.data.source, "taken": scene.data.taken}, "calibration_tokens": tokens,
        "activation_bytes": _activations(scene, tokens), "memory_bytes": _memory(scene, tokens, menu), "work_operations": work,
        "compute": scene.subject.compute.to_json(),
        "measured": scene.measured is not None, **_time(scene, work), "fits": None if budget is None or unknown else not unfit, "why": unfit,
    }  # fmt: skip


def _reach(table: Table) -> tuple[int, int]:
    """Bytes of the smallest and of the largest choice."""
    return int(table.cost(table.cheapest())), int(table.cost(table.best(lambda _, choice: (-float(choice.bytes),))))


def _planned(table: Table, plan: Plan) -> tuple[int, int]:
    """Bytes of a plan, twice; where it has what no table lists, such as one weight of several that are stored together, all within reach."""
    texts = {site: [choice.option for choice in choices] for site, choices in table.choices.items()}
    asked = {site: plan.options.get(site, KEEP) for site in texts}
    if set(plan.options) - set(texts) or not all(option in texts[site] for site, option in asked.items()):
        return _reach(table)
    total = int(table.cost(table.settle({site: texts[site].index(option) for site, option in asked.items()})))
    return total, total


def _options(scene: Scene, site: Site, menu: Sequence[Option]) -> list[str]:
    """What may be chosen on a site, or the one thing that a plan has there."""
    plan = scene.request.plan
    return list(offered(scene.target, site, menu)) if plan is None else [plan.options.get(site.name, KEEP)]


def _unknown(budget: Budget | None) -> str:
    """Why a budget cannot be checked without running the model; nothing where it can."""
    if budget is None:
        return ""
    return UNTIMED if budget.speed or budget.latency else UNCOUNTED if budget.macs else ""


def _operations(scene: Scene, tokens: int, options: int) -> int:
    units = scene.model.units
    products = 2 * tokens * sum(unit.size for unit in units.values() if unit.kind != "embedding")
    covariances = sum(2 * tokens * units[stage[0]].shape[1] ** 2 for stage in scene.script.stages)
    solves = sum(unit.size * unit.shape[1] for site in scene.sites for unit in site.units) * options
    # Of a measurement, what it took to measure is spent already: one option on every unit is left to be made.
    return int(products + covariances + solves / options if scene.measured is not None else 2 * products + covariances + solves)


def _activations(scene: Scene, tokens: int) -> int:
    per_token = max((unit.shape[0] + unit.shape[1] for unit in scene.model.units.values()), default=0)
    return tokens * per_token * scene.model.computed.itemsize


def _memory(scene: Scene, tokens: int, options: Iterable[Option]) -> int:
    """Bytes this process would have at the most, all activations in memory."""
    model, request = scene.model, scene.request
    at_once = min(tokens, request.micro_batch * request.tokens) if scene.subject.planned else count_tokens(scene.data.calibration[:1])
    batch = {"input_ids": torch.empty((1, at_once), dtype=torch.int64, device="meta")}
    return memory.largest(model, scene.script, batch, options) + _activations(scene, tokens)


def _time(scene: Scene, work: int) -> dict[str, float]:
    """Seconds that the work takes at the speed that matrix products have here now, and those of the search, which a setting says."""
    product = torch.ones(_PRODUCT, _PRODUCT)
    product @ product
    count, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < _SECONDS:
        product @ product
        count += 1
    speed = 2 * _PRODUCT**3 * count / spent
    searching = 0.0 if scene.request.budget is None else scene.request.search_time
    return {"operations_per_second": speed, "seconds": _BESIDE * work / speed + searching, "search_seconds": searching}


def _unfit(chooser: Chooser, table: Table) -> str:
    """Why the budget cannot be met, and what can; nothing where it can."""
    try:
        chooser.check(table)
    except BudgetError as error:
        return str(error)
    return ""
