"""Codes for an entropy coder: seconds per million weights to make and to write them, beside GPTQ's, and how fast they are read."""

from __future__ import annotations

import math

import torch

from bench.common import show
from bench.solver import seconds
from modicum.core.unit import Stats
from modicum.forms import Coded, restore
from modicum.numerics.grid import Grid
from modicum.quantize import Gptq, Watersic

SIZES = ((768, 768), (1536, 1536))
RATES = (2.0, 3.0, 4.0)


def main() -> None:
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


def seen(covariance: torch.Tensor) -> Stats:
    return Stats(count=2 * len(covariance), covariance=covariance)


def made(rate: float, paths: bool, weight: torch.Tensor, covariance: torch.Tensor) -> tuple[Coded, float]:
    """A form and the seconds it took."""
    found: list[Coded] = []
    took = seconds(lambda: found.append(Watersic(rate=rate, paths=paths).code(weight, seen(covariance), torch.bfloat16)), times=1)  # type: ignore[arg-type]
    return found[-1], took


def lost(form: Coded, weight: torch.Tensor, covariance: torch.Tensor) -> float:
    error = form.dense().float() - weight
    return float((error @ covariance * error).sum())


if __name__ == "__main__":
    main()
