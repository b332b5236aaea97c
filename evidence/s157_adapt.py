"""S157, adaptive precision: word lengths that each layer finds, against float training and one length for all."""

from __future__ import annotations

import functools
from typing import Any

import torch

from classifying import learn
from common import Claim, Setting, result, show
from modicum.train.learning import plan_of
from modicum.train.trained import Trained
from scenes import digits
from scenes.training import classes, drawn
from small import DATA, less, row, shared, worth

STEPS, NEAR = 250, 0.02

CLAIM = Claim(
    id="S157",
    system="AdaPT (fixed-point training)",
    claim="During training, per-layer fixed-point word/fraction length drops to the lowest with no KL information loss between float and quantized "
    "weight histograms, rises when gradient diversity demands; prints per-layer bits, sparsity and modelled speedup.",
    metric="accuracy of the net in words of its own finding minus that of the float net, plus 0.02",
    margin=2.0,
    setting=Setting(
        method="adaptive_precision every=25", baselines=("dense",), beside=("adaptive_precision every=25 divergence=0",), test_samples=0
    ),
)


def once(method: str, seed: int) -> dict[str, Any]:
    """What a net is worth, and the bits, zeros and multiplications of its layers in the end."""
    torch.manual_seed(seed)
    model, (x, y), words = digits.Conv(), digits.pictures("train"), list[list[int]]()
    batches = [(x[places], y[places]) for _, places in zip(range(STEPS), drawn(len(x), 64, seed))]
    with Trained(model, plan_of(model, method), seed=seed, total=STEPS, scratch=True) as t:
        mine = [name for name, place in t.places.items() if place.method.key() == "restrict/adaptive_precision"]

        def loss(module: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            words.append([int(t.places[name].state["bits"]) for name in mine])
            return classes(module, batch)

        learn(t, batches, loss, 1e-2, STEPS)
        model.eval()
        sizes = [t.weight(name).numel() for name in mine]
        zeros = [float((t.weight(name) == 0).float().mean()) for name in mine]
        mean = sum(sum(bits * size for bits, size in zip(each, sizes)) for each in words) / max(1, len(words) * sum(sizes))
        stored = sum(t.forms()[name].nbytes for name in mine) or sum(p.numel() * 4 for p in model.parameters() if p.ndim > 1)
        return {**worth(model), "bits": words[-1], "zeros": zeros, "mean bits in training": mean or 32.0, "bytes": stored}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(method, [kept(f"words {method}, seed {seed}", functools.partial(once, method, seed)) for seed in setting.seeds])
        for method in (setting.method, *setting.baselines, *setting.beside)
    ]
    gains = [NEAR - gain for gain in less(rows[0], rows[1], "accuracy")]
    figures = {"products in words as long as these, of one of 32 bits": [mean / 32 for mean in rows[0]["mean bits in training"]]}
    conditions = {
        "layers differ": any(len(set(bits)) > 1 for bits in rows[0]["bits"]),
        "fewer bytes than at one length": rows[0]["bytes"] < rows[2]["bytes"],
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
