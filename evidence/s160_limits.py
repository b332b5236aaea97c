"""S160, computational limits of LoRA: where a gradient through chained low-rank products is that through exact attention.

Of every attention layer and head of the decoder, with an adapter trained beside its queries, keys and values, come the largest entries of queries and
keys. Attention of one head over L tokens costs L² products; with its exponential as a polynomial of degree g it is a chain of products of rank
(d + g choose g) for d inputs of a head, which is less than L for small g alone. Inputs are scaled so that the largest entry of queries and keys
takes given values, and the adapter's gradient through the chain is compared with the exact one. Rotary angles and the causal mask are left out, as in
the paper.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

import torch

from adapting import BATCH, rows
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.loop import train
from modicum.train.settings import Loop
from modicum.train.trained import trained
from scenes.decoder import decoder
from scenes.domains import opened, windows

CLAIM = Claim(
    id="S160",
    system="LoRA computational limits",
    claim="For each attention layer of a LoRA model, computes norms of input, pretrained-weight and alpha*BA/r products against the threshold, and a "
    "chained low-rank approximate LoRA gradient matching the exact one only below it.",
    metric="decades by which the chained gradient's relative error at four times the threshold is above that at a quarter, mean over layers",
    margin=2.0,
    setting=Setting(
        method="a quarter of the threshold", baselines=("four times the threshold",), beside=("the threshold",), test_samples=0
    ),
)
TOKENS, HEADS, RANK, SCALE = 512, 4, 8, 2.0
# The threshold is on the largest entry of queries and keys, with scores divided by the width of a head.
THRESHOLD = math.sqrt(math.log(TOKENS))
FACTORS = {"a quarter of the threshold": 0.25, "four times the threshold": 4.0, "the threshold": 1.0}
MATCHES, FAILS = 0.01, 0.1
DATA = (
    f"Four layers of the decoder with LoRA of rank {RANK} trained on prose for 20 updates, {TOKENS} tokens of held-out prose; the threshold is the "
    f"root of the logarithm of the tokens, {THRESHOLD:.2f}"
)


def layers(seed: int) -> list[tuple[torch.Tensor, dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]]:
    """Inputs (tokens, width) of each attention layer, and of queries, keys and values the weight and both factors of its adapter."""
    model, caught = opened(decoder()), []
    plan = {"*.self_attn.[qkv]_proj.weight": f"lora rank={RANK}"}
    hooks = [
        layer.self_attn.q_proj.register_forward_hook(lambda _, args, __: caught.append(args[0][0].detach())) for layer in model.model.layers
    ]
    with trained(model, plan, seed=seed, total=20) as t:
        train(model, t, rows(windows("prose", "train", 64)), Loop(steps=20, rate=1e-2, batch=BATCH, seed=seed))
        caught.clear()
        with torch.no_grad():
            model(input_ids=windows("prose", "test", TOKENS)[seed][None])
        states = {
            name: (place.base.dense(), place.state["left"].detach(), place.state["right"].detach()) for name, place in t.places.items()
        }
    for hook in hooks:
        hook.remove()
    of = lambda place: {kind: states[f"model.layers.{place}.self_attn.{kind}_proj.weight"] for kind in "qkv"}
    return [(x, of(place)) for place, x in enumerate(caught[: len(model.model.layers)])]


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of one head (tokens, d), scores divided by d."""
    return torch.softmax(q @ k.T / q.shape[1], -1) @ v


def chained(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same with the exponential's terms up to the second, as products of rank (d + 1)(d + 2) / 2: no table of scores is made."""
    left, right = features(q / q.shape[1] ** 0.5), features(k / q.shape[1] ** 0.5)
    return left @ (right.T @ v) / (left @ right.sum(0))[:, None]


def features(x: torch.Tensor) -> torch.Tensor:
    """Rows whose products are 1 + xy + (xy)² / 2."""
    one, other = torch.triu_indices(x.shape[1], x.shape[1])
    pairs = x[:, one] * x[:, other] * torch.where(one == other, 0.5**0.5, 1.0)
    return torch.cat([torch.ones(len(x), 1), x, pairs], 1)


def error(x: torch.Tensor, parts: dict[str, Any], largest: float) -> float:
    """Relative error of the adapter's whole gradient, where the largest entry of queries and keys of each head is as said."""
    chance = torch.Generator().manual_seed(0)
    goal = torch.randn(len(x), x.shape[1], generator=chance)
    gradients = []
    for attention in (exact, chained):
        leaves = {
            (kind, name): part.clone().requires_grad_() for kind, each in parts.items() for name, part in zip(("left", "right"), each[1:])
        }
        made = {kind: x @ (parts[kind][0] + SCALE * leaves[kind, "left"] @ leaves[kind, "right"]).T for kind in parts}
        heads = {kind: each.chunk(HEADS, 1) for kind, each in made.items()}
        found = []
        for q, k, v in zip(heads["q"], heads["k"], heads["v"]):
            found.append(attention(q * (largest / float(q.detach().abs().max())), k * (largest / float(k.detach().abs().max())), v))
        slopes = torch.autograd.grad((torch.cat(found, 1) * goal).sum(), list(leaves.values()))
        gradients.append(torch.cat([slope.reshape(-1) for slope in slopes]))
    return float((gradients[1] - gradients[0]).norm() / gradients[0].norm())


def measured(seed: int) -> dict[str, Any]:
    found = layers(seed)
    norms = []
    for x, parts in found:
        base, change = (
            max(float((x @ weight.T).abs().max()) for weight in each)
            for each in ([parts[kind][0] for kind in "qk"], [SCALE * parts[kind][1] @ parts[kind][2] for kind in "qk"])
        )
        norms.append({"input": float(x.abs().max()), "weights": base, "adapter": change})
    return {
        "norms": norms,
        "errors": {name: [error(x, parts, factor * THRESHOLD) for x, parts in found] for name, factor in FACTORS.items()},
    }


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(measured, seed)) for seed in setting.seeds]
    mean = lambda name: [statistics.geometric_mean(each["errors"][name]) for each in found]
    table = [
        {
            "option": name, "relative error of the gradient": mean(name), "largest of a layer": [max(each["errors"][name]) for each in found],
            "smallest of a layer": [min(each["errors"][name]) for each in found],
        }
        for name in FACTORS
    ]  # fmt: skip
    below, above = table[0], table[1]
    gains = [math.log10(b / a) for a, b in zip(mean(setting.method), mean(setting.baselines[0]))]
    norm = lambda kind: {f"layer {n}": statistics.mean(each["norms"][n][kind] for each in found) for n in range(len(found[0]["norms"]))}
    width = 128 // HEADS
    figures = {
        "threshold": THRESHOLD, "largest entry of the inputs": norm("input"), "of queries and keys, by the weights": norm("weights"),
        "by the adapter's change": norm("adapter"), "rank of the chain, and tokens": [(width + 1) * (width + 2) // 2, TOKENS],
    }  # fmt: skip
    conditions = {
        f"below, the error of every layer is under {MATCHES:g}": max(below["largest of a layer"]) < MATCHES,
        f"above, that of every layer is over {FAILS:g}": min(above["smallest of a layer"]) > FAILS,
    }
    show(result(CLAIM, kept, table, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
