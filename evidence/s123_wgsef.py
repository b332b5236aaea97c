"""S123, group sparse envelopes: exactly half of the filters in the end, against group lasso cut to as many."""

from __future__ import annotations

import functools
from typing import Any

import torch

from common import Claim, Setting, result, show
from scenes import digits
from scenes.training import classes, drawn
from small import DATA, fitted, less, row, shared, worth

STEPS, KEEP, LAYERS = 250, 0.5, ("body.0.0.weight", "body.1.0.weight", "body.2.0.weight")
LASSO = (1e-3, 1e-2, 3e-2)

CLAIM = Claim(
    id="S123",
    system="WGSEF",
    claim="Proximal SGD with the weighted group sparse envelope prox over user-defined groups (filters, channels, layers); training must end with "
    "exactly the pre-set number of nonzero groups, physically removable, accuracy above group lasso.",
    metric="test loss of group lasso at the strength that validation prefers, its smallest filters cut at three quarters, minus that of the envelope",
    margin=2.0,
    setting=Setting(method=f"wgsef keep={KEEP}", baselines=("group lasso",), beside=("dense",), test_samples=0),
)


def enveloped(method: str, seed: int) -> dict[str, float]:
    """The net whose convolutions are trained under a method; the head is whole."""
    torch.manual_seed(seed)
    model = digits.Conv()
    plan: dict[str, Any] = {name: method if name in LAYERS else "dense" for name, _ in model.named_parameters()}
    return fitted(model, plan, seed, STEPS)


def lasso(strength: float, seed: int) -> dict[str, float]:
    """Group lasso over filters, from the share three quarters on under the mask of the largest."""
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
        if step == round(0.75 * STEPS):
            sizes = [weight.detach().flatten(1).norm(dim=1) for weight in weights]
            masks = [(size >= size.sort(descending=True).values[round(KEEP * len(size)) - 1])[:, None, None, None] for size in sizes]
        with torch.no_grad():
            for weight, mask in zip(weights, masks):
                weight.mul_(mask)
    model.eval()
    values = sum(int(weight.flatten(1).any(1).sum()) * weight[0].numel() for weight in weights) + model.head.weight.numel()
    new, labels = digits.pictures("validation")
    chosen = float(torch.nn.functional.cross_entropy(digits.logits(model, new), labels))
    return {"curve": loss.item(), **worth(model), "values": values, "bytes": values * 4, "validation": chosen}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    envelope, whole = (
        row(method, [kept(f"filters {method}, seed {seed}", functools.partial(enveloped, method, seed)) for seed in setting.seeds])
        for method in (setting.method, "dense")
    )
    strengths = {each: kept(f"group lasso {each:g}, seed 1000", functools.partial(lasso, each, 1000))["validation"] for each in LASSO}
    best = min(strengths, key=strengths.__getitem__)
    chosen = ("curve", "loss", "accuracy", "corrupted", "values", "bytes")
    other = row(
        f"group lasso {best:g}",
        [kept(f"group lasso {best:g}, seed {seed}", functools.partial(lasso, best, seed)) for seed in setting.seeds],
    )
    other = {name: other[name] for name in ("option", *chosen)}
    weights = [digits.Conv().get_parameter(name) for name in LAYERS]
    exact = sum(round(KEEP * len(weight)) * weight[0].numel() for weight in weights) + whole["values"][0] - sum(map(torch.numel, weights))
    conditions = {"exactly half of the filters of each layer": set(envelope["values"]) == {exact}}
    show(result(CLAIM, kept, [envelope, other, whole], less(envelope, other), {}, conditions, DATA))


if __name__ == "__main__":
    main()
