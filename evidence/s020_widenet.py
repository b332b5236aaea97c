"""S020, WideNet: one block's weights for all depths, with experts in its feed-forward part or with as many numbers in one."""

from __future__ import annotations

import functools

import torch

from common import Claim, Setting, result, show
from scenes.patches import Patches, plan
from small import DATA, fitted, less, row, shared

STEPS, RATE, DEPTH, INNER, EXPERTS = 300, 3e-3, 4, 48, 4

CLAIM = Claim(
    id="S020",
    system="WideNet",
    claim="Share one attention and one MoE FFN across all depths with individual LayerNorms per block; a tiny ViT or LM must beat the ALBERT-style "
    "shared dense model at no more trainable parameters.",
    metric="test loss of the shared block with one feed-forward part minus that of the shared block with four experts, two of which a token takes",
    margin=2.0,
    setting=Setting(method="experts, shared", baselines=("dense, shared",), beside=("dense, not shared",), test_samples=0),
)


def once(way: str, seed: int) -> dict[str, float]:
    """A net of one kind; the dense part has the numbers of all experts and of their router."""
    torch.manual_seed(seed)
    experts = EXPERTS if way.startswith("experts") else 1
    model = Patches(DEPTH, INNER if experts > 1 else EXPERTS * INNER + 2, experts)
    found = fitted(model, plan(model, "dense" if way.endswith("not shared") else "widenet"), seed, STEPS, RATE)
    return {**found, "values": found["values"]}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(way, [kept(f"patches {way}, seed {seed}", functools.partial(once, way, seed)) for seed in setting.seeds])
        for way in (setting.method, *setting.baselines, *setting.beside)
    ]
    conditions = {"no more numbers": rows[0]["values"][0] <= rows[1]["values"][0] + DEPTH * EXPERTS * 3}
    show(result(CLAIM, kept, rows, less(rows[0], rows[1]), {"against blocks of their own": less(rows[0], rows[2])}, conditions, DATA))


if __name__ == "__main__":
    main()
