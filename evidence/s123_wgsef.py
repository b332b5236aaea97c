"""S123, group sparse envelopes: exactly half of the filters in the end, against group lasso cut to as many."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch

from common import Claim, Setting, result, show
from scenes import digits
from scenes.training import classes, drawn
from small import DATA, fitted, less, row, shared, worth

STEPS, KEEP, LAYERS = 250, 0.5, ("body.0.0.weight", "body.1.0.weight", "body.2.0.weight")
LASSO, UNTIL, CHOOSING = (1e-3, 1e-2), (0.4, 0.75), 1000

CLAIM = Claim(
    id="S123",
    system="WGSEF",
    claim="Proximal SGD with the weighted group sparse envelope prox over user-defined groups (filters, channels, layers); training must end with "
    "exactly the pre-set number of nonzero groups, physically removable, accuracy above group lasso.",
    metric="test loss of group lasso minus that of the envelope, each at the settings that validation prefers",
    margin=2.0,
    setting=Setting(method="wgsef keep=0.5", baselines=("group lasso",), beside=("dense",), test_samples=0),
)


def enveloped(method: str, seed: int, part: str) -> dict[str, float]:
    """The net whose convolutions are trained under a method; the head is whole."""
    torch.manual_seed(seed)
    model = digits.Conv()
    plan: dict[str, Any] = {name: method if name in LAYERS else "dense" for name, _ in model.named_parameters()}
    return fitted(model, plan, seed, STEPS, part=part)


def lasso(strength: float, until: float, seed: int, part: str) -> dict[str, float]:
    """Group lasso over filters, from a share of training on under the mask of the largest."""
    torch.manual_seed(seed)
    model, (x, y) = digits.Conv(), digits.pictures("train")
    weights = [model.get_parameter(name) for name in LAYERS]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    masks: list[torch.Tensor] = []
    for step, places in zip(range(STEPS), drawn(len(x), 64, seed)):
        loss = classes(model, (x[places], y[places])) + strength * sum(weight.flatten(1).norm(dim=1).sum() for weight in weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        pace.step()
        if step == round(until * STEPS):
            sizes = [weight.detach().flatten(1).norm(dim=1) for weight in weights]
            masks = [(size >= size.sort(descending=True).values[round(KEEP * len(size)) - 1])[:, None, None, None] for size in sizes]
        with torch.no_grad():
            for weight, mask in zip(weights, masks):
                weight.mul_(mask)
    model.eval()
    values = sum(int(weight.flatten(1).any(1).sum()) * weight[0].numel() for weight in weights) + model.head.weight.numel()
    return {"curve": loss.item(), **worth(model, part=part), "values": values, "bytes": values * 4}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    methods = {until: f"wgsef keep={KEEP} until={until}" for until in UNTIL}
    told = lambda method, seed, part="test": kept(
        f"filters {method}, seed {seed}, {part}", functools.partial(enveloped, method, seed, part)
    )
    first = min(UNTIL, key=lambda until: told(methods[until], CHOOSING, "validation")["loss"])
    envelope, whole = (row(method, [told(method, seed) for seed in setting.seeds]) for method in (methods[first], "dense"))
    cut = lambda strength, until, seed, part="test": kept(
        f"group lasso {strength:g} until {until}, seed {seed}, {part}", functools.partial(lasso, strength, until, seed, part)
    )
    best = min(itertools.product(LASSO, UNTIL), key=lambda pair: cut(*pair, CHOOSING, "validation")["loss"])
    other = row(f"group lasso {best[0]:g} until {best[1]}", [cut(*best, seed) for seed in setting.seeds])
    weights = [digits.Conv().get_parameter(name) for name in LAYERS]
    exact = sum(round(KEEP * len(weight)) * weight[0].numel() for weight in weights) + whole["values"][0] - sum(map(torch.numel, weights))
    conditions = {"exactly half of the filters of each layer": set(envelope["values"]) == {exact}}
    show(result(CLAIM, kept, [envelope, other, whole], less(envelope, other), {}, conditions, DATA))


if __name__ == "__main__":
    main()
