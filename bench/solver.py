"""The shared solver against one matrix product of the same size in the same process; rounding and packing against a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from bench.common import show
from modicum.core.unit import Stats
from modicum.numerics.gram import add_gram, mirror
from modicum.numerics.grid import Grid
from modicum.numerics.solver import factorize
from modicum.prune import Sparsegpt
from modicum.quantize import Gptq, Hqq, Nearest

SIZES = (1024, 2048, 4096)


def seconds(work, times: int = 3) -> float:
    """The median of the processor's time, after one call that loads and warms what is needed."""
    work()
    found = []
    for _ in range(times):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return statistics.median(found)


def main() -> None:
    rows = []
    for size in SIZES:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(size, size, generator=generator)
        inputs = torch.randn(2 * size, size, generator=generator) @ torch.randn(size, size, generator=generator) / size**0.5
        covariance = inputs.T @ inputs
        product = seconds(lambda weight=weight: weight @ weight)
        cholesky = seconds(lambda covariance=covariance: factorize(covariance, 0.01))
        works: dict[str, Callable[[], object]] = {
            "gptq bits=4 group=128 clip=1": lambda: Gptq(bits=4, group=128, clip=1.0).quantize(
                weight, Grid(4, 128), Stats(count=1, covariance=covariance), torch.float32
            ),
            "sparsegpt keep=0.5": lambda: Sparsegpt(keep=0.5).solve(weight, Stats(count=1, covariance=covariance)),
            "sparsegpt pattern=2:4": lambda: Sparsegpt(pattern="2:4").solve(weight, Stats(count=1, covariance=covariance)),
        }
        for name, work in works.items():
            spent = seconds(work)
            rows.append((size, name, f"{spent:.2f} s", f"{product:.3f} s", f"{spent / product:.1f}", f"{cholesky / product:.1f}"))
    show(
        "Solver: one layer, covariance given, in multiples of one fp32 product",
        ("size", "method", "seconds", "one product", "ratio", "of it the factorization"),
        rows,
        "The floor is half a product for the corrections and a sixth for the factorization in float32, which is tried first. Processor seconds.",
    )
    together()
    covariances()
    rounding()


def together(size: int = 1024) -> None:
    """Weights of one stage, solved alone and at once."""
    chance, rows = torch.Generator().manual_seed(0), []
    weights = [torch.randn(size, size, generator=chance) for _ in range(4)]
    inputs = torch.randn(2 * size, size, generator=chance) @ torch.randn(size, size, generator=chance) / size**0.5
    covariance = inputs.T @ inputs
    for count in (1, 2, 3, 4):
        product = seconds(lambda: weights[0] @ weights[0], 9)  # beside each: others may be at work
        solved, moved = (
            seconds(lambda count=count, sweeps=sweeps: at_once(weights[:count], covariance, sweeps), 5) / count for sweeps in (0, 1)
        )
        rows.append((count, f"{solved:.3f} s", f"{product:.4f} s", f"{solved / product:.1f}", f"{moved / product:.1f}"))
    show(
        f"Solver at once: GPTQ on weights of {size} x {size} with the same inputs, for each",
        ("weights", "processor seconds", "one product", "ratio", "with one sweep of descent"),
        rows,
        "gptq bits=4 group=128 clip=1 sweeps=0, one factorization for all. Codes are to the bit those of each alone. A sweep moves every code "
        "and scale to its best given all others, after the solver. `python bench/run.py solver`.",
    )


def at_once(weights: list[torch.Tensor], covariance: torch.Tensor, sweeps: int = 0) -> None:
    """GPTQ on weights that share their inputs, as the weights of one stage do."""
    method, shared = Gptq(bits=4, group=128, clip=1.0, sweeps=sweeps), {}
    stats = [Stats(count=1, covariance=covariance, cache=shared) for _ in weights]
    stats[0].beside = tuple(zip(weights[1:], stats[1:]))
    for weight, own in zip(weights, stats):
        method.quantize(weight, method.grid, own, torch.float32)


def covariances(tokens: int = 4096) -> None:
    """Half of the matrix of one micro-batch's inner products against the whole by one product; errors against float64."""
    rows = []
    for size in (1024, 2048, 4096, 5632):
        inputs = torch.randn(tokens, size, generator=torch.Generator().manual_seed(0)).bfloat16()
        values, total = inputs.float(), torch.zeros(size, size)
        whole = seconds(lambda values=values: values.T @ values)
        half = seconds(lambda values=values, total=total: add_gram(total, values))
        exact = values.double().T @ values.double()
        error = lambda found, exact=exact: f"{float((found.double() - exact).norm() / exact.norm()):.1e}"
        ours = torch.zeros(size, size)
        add_gram(ours, values)
        speed = f"{2 * tokens * size**2 / half / 1e9:.0f}"
        rows.append((size, f"{whole:.3f} s", f"{half:.3f} s", f"{half / whole:.2f}", speed, error(mirror(ours)), error(inputs.T @ inputs)))
    show(
        "Covariances: one micro-batch in float32",
        ("columns", "one product", "half of it", "ratio", "gigaflops of the whole", "error", "error of a bfloat16 product"),
        rows,
        f"{tokens} tokens. Errors are relative to the float64 matrix, in the Frobenius norm. `python bench/run.py solver`.",
    )


def rounding(size: int = 4096) -> None:
    """From bf16 weights to packed codes, on one thread."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    methods = {f"nearest bits={bits} group=128": Nearest(bits=bits, group=128) for bits in (2, 3, 4, 8)}
    methods["hqq bits=4 group=128"] = Hqq(bits=4, group=128)
    try:
        copied = seconds(lambda: weight.float())
        rows = []
        for name, method in methods.items():
            spent = seconds(
                lambda method=method: method.quantize(weight.float(), method.grid, Stats(), weight.dtype).tensors(),
                5 if "nearest" in name else 1,
            )
            rows.append((name, f"{weight.nbytes / spent / 1e6:.0f} MB/s", f"{spent / copied:.1f}"))
    finally:
        torch.set_num_threads(before)
    show(
        "Rounding: bf16 weights to packed codes, one thread",
        ("method", "bf16 weights", "times a copy to float32"),
        rows,
        "The floor is that copy: one reading of the weights, and one writing of twice as much.",
    )


if __name__ == "__main__":
    main()
