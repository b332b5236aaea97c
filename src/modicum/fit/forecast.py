"""What a run would do, without doing it: from the config, the headers of the weights, and a sample of the data."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from modicum.core.errors import BudgetError
from modicum.core.option import Option
from modicum.core.plan import Table
from modicum.data.splits import count_tokens
from modicum.fit.account import untreated
from modicum.fit.choose import Chooser
from modicum.runtime import memory
from modicum.table.menu import offered

if TYPE_CHECKING:
    from modicum.fit.run import Run

# What is said of a budget of time.
UNTIMED = "time is only known once the model has run, which a dry run leaves out"
# The size of the products that this machine's speed is told by, and for how long.
_PRODUCT, _SECONDS = 512, 0.2
# What a run takes beside its large products, in multiples of them.
_BESIDE = 3.0


def forecast(run: Run) -> dict[str, Any]:
    """Sizes within reach, what would be treated and what not, and what it would take."""
    budget = run.request.budget
    untimed = budget is not None and bool(budget.speed or budget.latency) and bool(run.subject.planned)
    chooser = Chooser(run.subject, run.target_name, run.request) if budget is not None and not untimed else None
    sizing = chooser.sizing if chooser is not None else run.subject.sizing(run.target_name)
    menu, table = sizing.menu, chooser.table(None) if chooser is not None else sizing.table()
    smallest = int(table.cost(table.cheapest()))
    largest = int(table.cost(table.best(lambda _, choice: (-float(choice.bytes),))))
    tokens = run.subject.planned or run.script.count_tokens(run.data.calibration)
    unfit = UNTIMED if untimed else "" if chooser is None else _unfit(chooser, table)
    model, work = run.model, _operations(run, tokens, len(menu))
    return {
        "format": "modicum-forecast", "version": 1, "model": model.name, "target": run.target_name,
        "parameters": model.parameters, "original_bytes": model.dense_bytes, "smallest_bytes": smallest, "largest_bytes": largest,
        "smallest_bpw": 8 * smallest / model.parameters, "blocks": len(model.blocks), "units": len(model.units),
        "sites": [{"name": site.name, "kind": site.kind, "weights": site.size, "data_free": site.data_free,
                   "options": list(offered(run.target, site, menu))} for site in run.sites],
        "untreated": untreated(run, {}), "data": {"source": run.data.source, "taken": run.data.taken}, "calibration_tokens": tokens,
        "activation_bytes": _activations(run, tokens), "memory_bytes": _memory(run, tokens, menu), "work_operations": work,
        "measured": run.measured is not None, **_time(run, work), "fits": None if budget is None or untimed else not unfit, "why": unfit,
    }  # fmt: skip


def _operations(run: Run, tokens: int, options: int) -> int:
    units = run.model.units
    products = 2 * tokens * sum(unit.size for unit in units.values() if unit.kind != "embedding")
    covariances = sum(2 * tokens * units[stage[0]].shape[1] ** 2 for stage in run.script.stages)
    solves = sum(unit.size * unit.shape[1] for site in run.sites for unit in site.units) * options
    # Of a measurement, what it took to measure is spent already: one option on every unit is left to be made.
    return int(products + covariances + solves / options if run.measured is not None else 2 * products + covariances + solves)


def _activations(run: Run, tokens: int) -> int:
    per_token = max((unit.shape[0] + unit.shape[1] for unit in run.model.units.values()), default=0)
    return tokens * per_token * run.model.dtype.itemsize


def _memory(run: Run, tokens: int, options: Iterable[Option]) -> int:
    """Bytes this process would have at the most, all activations in memory."""
    model, request = run.model, run.request
    at_once = min(tokens, request.micro_batch * request.tokens) if run.subject.planned else count_tokens(run.data.calibration[:1])
    batch = {"input_ids": torch.empty((1, at_once), dtype=torch.int64, device="meta")}
    return memory.largest(model, run.script, batch, options) + _activations(run, tokens)


def _time(run: Run, work: int) -> dict[str, float]:
    """Seconds that the work takes at the speed that matrix products have here now, and those of the search, which a setting says."""
    product = torch.ones(_PRODUCT, _PRODUCT)
    product @ product
    count, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < _SECONDS:
        product @ product
        count += 1
    speed = 2 * _PRODUCT**3 * count / spent
    searching = 0.0 if run.request.budget is None else run.request.search_time
    return {"operations_per_second": speed, "seconds": _BESIDE * work / speed + searching, "search_seconds": searching}


def _unfit(chooser: Chooser, table: Table) -> str:
    """Why the budget cannot be met, and what can; nothing where it can."""
    try:
        chooser.check(table)
    except BudgetError as error:
        return str(error)
    return ""
