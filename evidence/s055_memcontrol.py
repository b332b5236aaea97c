"""S055, MemControl: which blocks of a diffusion model train on a few pictures, searched by what it learns and what it copies, against all of it."""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

import torch

from classifying import learn
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.masks import search
from modicum.train.trained import trained
from scenes.diffusion import KEPT, LEVELS, batches, diffusion, held_out, loss, opened, small

CLAIM = Claim(
    id="S055",
    system="MemControl",
    claim="Outer multi-objective search over binary masks of which diffusion modules to fine-tune, inner fine-tuning, rewards nearest-neighbour "
    "memorization and FID; on a tiny diffusion model the Pareto front must dominate full fine-tuning.",
    metric="the smaller of two gains of a mask of the front over full fine-tuning: share of the denoising error, and of the memorization",
    margin=2.0,
    setting=Setting(method="full | memcontrol, a mask of the front", baselines=("full",), test_samples=0),
)
PICTURES, STEPS, TRIALS, SAMPLES, TIMES = 24, 120, 5, 96, 25
RATES, CHOOSING = (1e-3, 3e-3), 1000
DATA = (
    f"A diffusion model of white digits of 8 by 8 learns {PICTURES} coloured ones in {STEPS} updates; a search of {TRIALS} masks of its four blocks "
    f"by the error on 150 pictures and by how much nearer {SAMPLES} samples lie to what was learnt than to as many others; judged on 497 pictures"
)


@torch.no_grad()
def sampled(model: torch.nn.Module, seed: int) -> torch.Tensor:
    """Pictures (SAMPLES, 3, 8, 8) from noise, in TIMES deterministic steps."""
    x = torch.randn(SAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    levels = torch.linspace(LEVELS - 1, 0, TIMES).round().long().tolist()
    for now, then in zip(levels, [*levels[1:], None]):
        noise = model(x, torch.full((SAMPLES,), now))
        clean = ((x - (1 - KEPT[now]).sqrt() * noise) / KEPT[now].sqrt()).clamp(-1, 1)
        x = clean if then is None else KEPT[then].sqrt() * clean + (1 - KEPT[then]).sqrt() * noise
    return x


def copied(samples: torch.Tensor, learnt: torch.Tensor, others: torch.Tensor) -> float:
    """Mean logarithm of how many times farther the nearest of other pictures lies than the nearest of those learnt; 0 where neither is nearer."""
    nearest = lambda pictures: torch.cdist(samples.flatten(1), pictures.flatten(1)).min(1).values
    return float((nearest(others) / nearest(learnt).clamp_min(1e-6)).log().mean())


def once(plan: str, rate: float, seed: int) -> dict[str, Any]:
    """Errors and memorization on the pictures that masks are chosen by, and on those that are reported."""
    torch.manual_seed(seed)
    model, pool = opened(diffusion()), small("train", True, seed=seed)
    pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))]
    learnt, choosing, others = pool[:PICTURES], pool[100:250], pool[300 : 300 + PICTURES]
    with trained(model, {"*": "full"} if plan == "full" else {"*blocks*": plan}, seed=seed, total=STEPS) as t:
        moving = sum(parameter.numel() for parameter in t.parameters() if parameter.requires_grad)
        learn(t, batches(learnt.repeat(math.ceil(64 / PICTURES), 1, 1, 1), seed), loss, rate, STEPS)
        samples = sampled(model, seed)
        test = small("test", True, seed=2)
        return {
            "chosen by": [held_out(model, choosing), copied(samples, learnt, others)],
            "reported": [held_out(model, test), copied(sampled(model, seed + 500), learnt, test[:PICTURES])],
            "moving": moving,
        }  # fmt: skip


def of_seed(kept: Kept, rate: float, seed: int) -> dict[str, Any]:
    """Full fine-tuning, and the mask of the front that gains most where it gains least, by the pictures that masks are chosen by."""
    full = kept(f"full, rate {rate:g}, seed {seed}", functools.partial(once, "full", rate, seed))
    masks: dict[str, dict[str, Any]] = {}

    def rewards(mask: str) -> list[float]:
        plan = f"full | memcontrol blocks={mask}"
        masks[mask] = kept(f"{plan}, rate {rate:g}, seed {seed}", functools.partial(once, plan, rate, seed))
        return masks[mask]["chosen by"]

    front = search(4, rewards, TRIALS, seed=seed)
    best = max((mask for mask, _ in front), key=lambda mask: least(full["chosen by"], masks[mask]["chosen by"]))
    return {"full": full, "mask": best, "found": masks[best], "front": len(front)}


def least(full: list[float], mine: list[float]) -> float:
    """The smaller of the two gains, as shares."""
    return min((a - b) / abs(a) for a, b in zip(full, mine))


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    tried = {rate: kept(f"full, rate {rate:g}, chosen", functools.partial(once, "full", rate, CHOOSING))["chosen by"][0] for rate in RATES}
    rate = min(tried, key=tried.__getitem__)
    found = [of_seed(kept, rate, seed) for seed in setting.seeds]
    gains = [least(each["full"]["reported"], each["found"]["reported"]) for each in found]
    made = [
        {
            "option": option, "denoising error": [one["reported"][0] for one in each], "memorization": [one["reported"][1] for one in each],
            "trained": [one["moving"] for one in each], "rate": [rate for _ in each],
        }
        for option, each in ((setting.method, [one["found"] for one in found]), ("full", [one["full"] for one in found]))
    ]  # fmt: skip
    figures = {
        "masks chosen": ", ".join(each["mask"] for each in found),
        "gain in the error": statistics.mean(1 - b / a for a, b in zip(made[1]["denoising error"], made[0]["denoising error"])),
        "gain in the memorization": statistics.mean(1 - b / a for a, b in zip(made[1]["memorization"], made[0]["memorization"])),
    }
    conditions = {"full fine-tuning copies what it learnt": min(one["full"]["reported"][1] for one in found) > 0}
    show(result(CLAIM, kept, made, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
