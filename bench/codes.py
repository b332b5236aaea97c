"""Codes for an entropy coder: seconds per million weights to make and to write them, beside GPTQ's, and how fast they are read; codebooks too.

`python -m bench.codes`, or `python -m bench.codes codebooks` for those alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial

import torch

from bench.common import show
from bench.solver import seconds
from modicum.core.unit import Stats
from modicum.forms import Coded, Form, restore
from modicum.numerics.grid import Grid
from modicum.quantize import Gptq, Gptvq, Kmeans, Watersic

SIZES = ((768, 768), (1536, 1536))
RATES = (2.0, 3.0, 4.0)
BOOKS = (
    Kmeans(bits=4, dimension=2), Gptvq(bits=2, dimension=1), Gptvq(bits=4, dimension=2), Gptvq(bits=8, dimension=4),
    Gptvq(bits=4, dimension=4, stages=2), Watersic(rate=2.0),
)  # fmt: skip


def main() -> None:
    """Both tables."""
    streams()
    codebooks()


def streams() -> None:
    rows = []
    for shape in SIZES:
        chance = torch.Generator().manual_seed(0)
        weight = torch.randn(shape, generator=chance)
        inputs = torch.randn(2 * shape[1], shape[1], generator=chance) @ torch.randn(shape[1], shape[1], generator=chance) / shape[1] ** 0.5
        covariance, millions = inputs.T @ inputs, weight.numel() / 1e6
        gptq = seconds(lambda: Gptq(bits=3, group=64).quantize(weight, Grid(3, 64), seen(covariance), torch.bfloat16)) / millions
        for rate in RATES:
            plain, ours = (made(rate, paths, weight, covariance) for paths in (False, True))
            gain = 0.5 * math.log2(lost(plain[0], weight, covariance) / lost(ours[0], weight, covariance))
            for paths, (form, took) in ((False, plain), (True, ours)):
                took /= millions
                written = seconds(lambda: (form.__dict__.pop("_stream", None), form.tensors())) / millions
                parts, told = form.tensors(), form.describe()
                read = seconds(lambda: restore(told, parts, known=True)) / millions
                speeds = (f"{gptq:.2f} s", f"{took:.2f} s", f"{took / gptq:.1f}", f"{1 / written:.0f}", f"{1 / read:.0f}")
                rows.append((f"{shape[0]} x {shape[1]}", f"{rate:g}", "paths" if paths else "", *speeds, f"{gain:.2f}" if paths else ""))
    show(
        "Codes: an entropy-coded layer beside GPTQ of 3 bits in groups of 64, covariance given",
        (
            "weight", "bits", "", "gptq, a million weights", "watersic, a million", "ratio", "coded, millions a second",
            "decoded, millions a second", "bits that paths are worth",
        ),
        rows,
        "One thread's processor seconds. A step that fills the stream takes two to four solves, and low rates a factorization of their own.",
    )  # fmt: skip


def codebooks() -> None:
    """Seconds to make codebooks, and how fast a weight is made of them again, at the smaller size."""
    shape, rows = SIZES[0], []
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=chance)
    inputs = torch.randn(2 * shape[1], shape[1], generator=chance) @ torch.randn(shape[1], shape[1], generator=chance) / shape[1] ** 0.5
    covariance, millions = inputs.T @ inputs, weight.numel() / 1e6
    grid = Grid(2, 64, True)
    makes: dict[str, Callable[[], Form]] = {
        "gptq bits=2 group=64": lambda: Gptq(bits=2, symmetric=True).quantize(weight, grid, seen(covariance), torch.bfloat16),
        "gptq bits=2 group=64, scales of 6 bits": lambda: _whole(weight, covariance, Gptq(bits=2, symmetric=True, scales=6)),
        **{str(each): partial(_coded, each, weight, covariance) for each in BOOKS},
    }
    base = 0.0
    for name, make in makes.items():
        found: list[Form] = []
        took = seconds(lambda: found.append(make()), times=1) / millions
        base, form = base or took, found[-1]
        parts, told = form.tensors(), form.describe()
        read = seconds(lambda: restore(told, parts, known=True).dense()) / millions
        cost = lost(form, weight, covariance) / float((weight @ covariance * weight).sum())
        rows.append(
            (name, f"{8 * form.nbytes / weight.numel():.2f}", f"{took:.2f} s", f"{took / base:.1f}", f"{1 / read:.0f}", f"{cost:.4f}")
        )
    show(
        "Codebooks: a layer of 768 x 768 beside GPTQ of 2 bits, covariance given",
        ("method", "bits with all beside", "a million weights", "ratio", "made dense, millions a second", "error relative to the output"),
        rows,
        "One thread's processor seconds. `python -m bench.codes codebooks`.",
    )  # fmt: skip


def _whole(weight: torch.Tensor, covariance: torch.Tensor, method: Gptq) -> Form:
    return method._whole(weight.bfloat16(), seen(covariance))


def _coded(method: Kmeans | Gptvq | Watersic, weight: torch.Tensor, covariance: torch.Tensor) -> Form:
    return method.code(weight, seen(covariance), torch.bfloat16)


def seen(covariance: torch.Tensor) -> Stats:
    return Stats(count=2 * len(covariance), covariance=covariance)


def made(rate: float, paths: bool, weight: torch.Tensor, covariance: torch.Tensor) -> tuple[Coded, float]:
    """A form and the seconds it took."""
    found: list[Coded] = []
    took = seconds(lambda: found.append(Watersic(rate=rate, paths=paths).code(weight, seen(covariance), torch.bfloat16)), times=1)  # type: ignore[arg-type]
    return found[-1], took


def lost(form: Form, weight: torch.Tensor, covariance: torch.Tensor) -> float:
    error = form.dense().float() - weight
    return float((error @ covariance * error).sum())


if __name__ == "__main__":
    codebooks() if "codebooks" in sys.argv else main()
