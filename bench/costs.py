"""Every method on one layer against one Cholesky factorization of its covariance, by the processor's time of one thread.

``python -m bench.costs 4096`` measures one size and leaves the other columns of the table as they are; words that are no sizes are what the names of
methods begin with, of which nothing but these is measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from bench.common import RESULTS, show
from modicum.core.method import Method, Need, registry
from modicum.core.option import Option
from modicum.core.slopes import Slopes
from modicum.core.unit import Site, Stats, Unit
from modicum.drop import Ziplm
from modicum.factor import Svd
from modicum.forms import Dense
from modicum.numerics.threads import single_threaded
from modicum.prune import Magnitude, Sparsegpt, Wanda
from modicum.quantize import Gptq, Hqq, Nearest
from modicum.repair import Eora

# Rows of a layer by its columns: so few where columns are many that every method can be measured.
ROWS = {1024: 1024, 4096: 256, 11008: 64}
HEAD = 128
# Directions of the inputs beside their own deviations, and sequences whose gradients are given to methods that ask for them.
_DIRECTIONS, SEQUENCES = 512, 16
# What a multiple may be before it is marked.
_MOST = 8
UNIT, PRODUCT = "one Cholesky factorization", "one product of weight and covariance"
# What cannot be left out of what a method is, by what its name begins with.
FLOORS = {
    "gptq": "1 + 10 products: each of two starts half of one for columns, one for the gradient and one for a sweep; then one and four sweeps",
    "sparsegpt": "1 + half a product",
    "adaquant": "200 products: the gradient of each update",
    "watersic": "1 for each damping + half a product for each of some five solves, and of each code on a path 170 sums and minima",
    "coded": "of each code on a path 170 sums and minima for each of some five solves",
    "mfac": "256 multiply-adds a weight for the inner products of 16 gradients, and as many for what goes, in float64",
    "eora": "1 product + the spectrum of the smaller side's Gram matrix",
    "svd": "the spectrum of the smaller side's Gram matrix",
    "ziplm, order": "3 for the inverse, and as much again as channels go: it loses a column for each",
}


def main(words: list[str] | None = None) -> None:
    """All sizes and methods, or those that are named."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    words = words or []
    sizes, named = [int(word) for word in words if word.isdigit()] or list(ROWS), [word for word in words if not word.isdigit()]
    found = _known()
    try:
        for size in sizes:
            for name, cell in measured(size, named):
                found.setdefault(name, {})[size] = cell
                print(size, name, cell, flush=True)
                record(found)
    finally:
        torch.set_num_threads(before)


def _known() -> dict[str, dict[int, str]]:
    """Cells of the table as it is, by method and size."""
    path = RESULTS / "costs.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return {name: dict(zip(ROWS, cells)) for name, *cells in rows}


def record(found: dict[str, dict[int, str]]) -> None:
    """The table of what was measured, by method and size."""
    floor = lambda name: next((text for known, text in FLOORS.items() if name.startswith(known)), "")
    show(
        "Costs: every method in multiples of one Cholesky factorization of the covariance",
        ("method", *(f"{size} columns, {rows} rows" for size, rows in ROWS.items()), "what it is made of at the least"),
        [(name, *(cells.get(size, "not measured") for size in ROWS), floor(name)) for name, cells in found.items()],
        "Covariance given, float32. The factorization is LAPACK's in float32, of columns³ / 3 operations. Processor seconds of one thread, beside "
        f"other work; ZipLM's order of channels at 11,008 columns is of 1,024 rows. (!) marks more than {_MOST}. "
        "`python bench/run.py costs`, one size at a time by `python -m bench.costs 4096`.",
    )


def measured(size: int, named: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """What each method takes at a size, or those that are ``named``."""
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS[size], size, generator=chance)
    inputs = torch.randn(min(_DIRECTIONS, size), size, generator=chance)
    own = (0.1 + torch.rand(size, generator=chance)).square_()
    covariance = (inputs.T @ inputs).mul_(0.5)
    covariance.diagonal().add_(own, alpha=len(inputs))
    del inputs
    times = 2 if size == min(ROWS) else 1
    one = seconds(lambda: cholesky(covariance), 1 if size == max(ROWS) else 2)
    yield UNIT, f"{one:.2f} s"
    yield PRODUCT, f"{seconds(lambda: weight @ covariance, 2) / one:.2f}"
    for name, work in (works(weight, covariance) | others(weight, covariance)).items():
        if named and not any(name.startswith(word) for word in named):
            continue
        spent = seconds(work, times)
        yield name, f"{spent / one:.2f}" + (" (!)" if spent > _MOST * one else "")


def works(weight: torch.Tensor, covariance: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Each method's work at the settings that stand on the menu."""
    columns = len(covariance)
    stats = lambda: Stats(count=columns, covariance=covariance, square=covariance.diagonal().clone(), total=torch.zeros(columns))
    lone, heads = [(column,) for column in range(columns)], [tuple(range(low, low + HEAD)) for low in range(0, columns, HEAD)]
    error = weight - Nearest(bits=3, group=64).quantize(weight, Nearest(bits=3, group=64).grid, Stats(), torch.float32).dense()
    rounded = lambda method: lambda: method.quantize(weight, method.grid, stats(), torch.float32)
    half = torch.arange(0, columns, 2)
    return {
        "nearest bits=4 group=64": rounded(Nearest(bits=4, group=64)),
        "hqq bits=4 group=64": rounded(Hqq(bits=4, group=64)),
        "gptq bits=4 group=64": rounded(Gptq(bits=4, group=64)),
        "magnitude keep=0.5": lambda: Magnitude(keep=0.5).solve(weight, stats()),
        "wanda keep=0.5": lambda: Wanda(keep=0.5).solve(weight, stats()),
        "sparsegpt keep=0.5": lambda: Sparsegpt(keep=0.5).solve(weight, stats()),
        "svd keep=0.25": lambda: Svd(keep=0.25).factor(weight),
        "eora rank=8": lambda: Eora(rank=8).repair(error, stats(), torch.float32),
        "ziplm, order of channels": lambda: Ziplm().order(weight, covariance, lone),
        f"ziplm, order of heads of {HEAD}": lambda: Ziplm().order(weight, covariance, heads),
        "ziplm, refit of half": lambda: Ziplm().refit(weight, covariance, half),
    }


def others(weight: torch.Tensor, covariance: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Methods of one layer that ``works`` does not name, as they are by default, with what ``SEQUENCES`` sequences' gradients say."""
    rows, columns = weight.shape
    unit = Unit("layer.weight", "layer.weight", "layer", "linear", (rows, columns), (rows, columns), torch.float32)
    window = torch.randn(SEQUENCES, rows, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    total, square = window.float().sum(0), window.float().square().sum(0)
    slopes = Slopes(SEQUENCES, total, square, window, square / SEQUENCES)

    def work(method: Method) -> object:
        stats = Stats(
            count=columns, covariance=covariance, square=covariance.diagonal().clone(), total=torch.zeros(columns), slopes=slopes,
            reference=weight,
        )  # fmt: skip
        return Option((method,)).apply(Site("site", "unit", (unit,)), {unit.name: stats}, {unit.name: Dense(weight)})

    named = {Nearest, Hqq, Gptq, Magnitude, Wanda, Sparsegpt, Svd, Eora}
    found = [cls() for cls in registry().values() if cls.family() in ("quantize", "prune", "factor") and cls not in named]
    return {str(method): partial(work, method) for method in found if Need.INPUTS not in method.needs}


def cholesky(covariance: torch.Tensor) -> None:
    """The unit."""
    raised = covariance.clone()
    raised.diagonal().add_(0.01 * covariance.diagonal().mean())
    with single_threaded():
        torch.linalg.cholesky_ex(raised, out=(raised, torch.empty((), dtype=torch.int32)))


def seconds(work: Callable[[], object], times: int) -> float:
    """The least of so many runs, by the processor's time."""
    found = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


if __name__ == "__main__":
    main(sys.argv[1:])
