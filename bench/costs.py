"""Every method on one layer against one Cholesky factorization of its covariance, by the processor's time of one thread."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from bench.common import show
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

ROWS, SIZES = 1024, (1024, 4096, 11008)
HEAD = 128
# Sequences whose gradients are given to methods that ask for them.
SEQUENCES = 16
# What a multiple may be before it is marked.
_MOST = 8


def main(words: list[str] | None = None) -> None:
    """All sizes, or those that are named."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, dict[int, str]] = {}
    sizes = [int(word) for word in words or ()] or list(SIZES)
    try:
        for size in sizes:
            for name, cell in measured(size):
                found.setdefault(name, {})[size] = cell
                print(size, name, cell, flush=True)
    finally:
        torch.set_num_threads(before)
    if not words:
        record(found, sizes)


def record(found: dict[str, dict[int, str]], sizes: list[int]) -> None:
    """The table of what was measured, by method and size."""
    show(
        "Costs: every method in multiples of one Cholesky factorization of the covariance",
        ("method", *(f"{size} columns" for size in sizes)),
        [(name, *(cells.get(size, "not measured") for size in sizes)) for name, cells in found.items()],
        f"Layers of {ROWS} rows, covariance given, float32. The factorization is LAPACK's in float32, of columns³ / 3 operations. "
        f"Processor seconds of one thread, beside other work; (!) marks more than {_MOST}. `python bench/run.py costs`.",
    )


def measured(size: int) -> Iterator[tuple[str, str]]:
    """What each method takes at a size."""
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, size, generator=chance)
    inputs = torch.randn(size + 256, size, generator=chance) * (0.1 + torch.rand(size, generator=chance))
    inputs += inputs[:, torch.randperm(size, generator=chance)] * 0.5
    covariance = inputs.T @ inputs
    del inputs
    times = 1 if size > SIZES[1] else 2
    one = seconds(lambda: cholesky(covariance), times)
    yield "one Cholesky factorization", f"{one:.2f} s"
    for name, work in (works(weight, covariance) | (others(weight, covariance) if size == SIZES[0] else {})).items():
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
