"""Codes for an entropy coder: seconds per million weights to make and to write them, beside GPTQ's, and how fast they are read."""

from __future__ import annotations

import torch

from bench.common import show
from bench.solver import seconds
from modicum.core.unit import Stats
from modicum.forms import restore
from modicum.numerics.grid import Grid
from modicum.quantize import Gptq, Watersic

SIZES = ((768, 768), (1024, 4096))
RATES = (2.0, 3.0, 4.0)


def main() -> None:
    rows = []
    for shape in SIZES:
        chance = torch.Generator().manual_seed(0)
        weight = torch.randn(shape, generator=chance)
        inputs = torch.randn(2 * shape[1], shape[1], generator=chance) @ torch.randn(shape[1], shape[1], generator=chance) / shape[1] ** 0.5
        covariance, millions = inputs.T @ inputs, weight.numel() / 1e6
        seen = lambda: Stats(count=len(inputs), covariance=covariance)
        gptq = seconds(lambda: Gptq(bits=3, group=64).quantize(weight, Grid(3, 64), seen(), torch.bfloat16)) / millions
        for rate in RATES:
            form = Watersic(rate=rate).code(weight, seen(), torch.bfloat16)
            made = seconds(lambda: Watersic(rate=rate).code(weight, seen(), torch.bfloat16)) / millions
            written = seconds(lambda: (form.__dict__.pop("_stream", None), form.tensors())) / millions
            parts, told = form.tensors(), form.describe()
            read = seconds(lambda: restore(told, parts, known=True)) / millions
            name = f"{shape[0]} x {shape[1]}"
            rows.append(
                (name, f"{rate:g}", f"{gptq:.2f} s", f"{made:.2f} s", f"{made / gptq:.1f}", f"{1 / written:.0f}", f"{1 / read:.0f}")
            )
    show(
        "Codes: an entropy-coded layer beside GPTQ of 3 bits in groups of 64, covariance given",
        (
            "weight",
            "bits",
            "gptq, a million weights",
            "watersic, a million",
            "ratio",
            "coded, millions a second",
            "decoded, millions a second",
        ),
        rows,
        "One thread's processor seconds. A step that fills the stream takes two to four solves, and low rates a factorization of their own.",
    )


if __name__ == "__main__":
    main()
