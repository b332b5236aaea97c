"""S101, sparse model soups: prune, retrain three copies, average them, and again; against the best of the last copies."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from scenes.digits import accuracy, classifier
from scenes.training import classes, drawn
from scenes.tuned import net, of, state
from tasks import TASKS, Tensors, merged, over

CLAIM = Claim(
    id="S101",
    system="Sparse Model Soups (SMS)",
    claim="After each prune step retrain m copies with varied order/weight decay under one mask, average, start the next prune from the average; "
    "sparsity stays exact and the average must beat the best copy, also OOD.",
    metric="test accuracy of the last average minus that of the last copy that is best on validation data",
    margin=2.0,
    setting=Setting(
        method="sparse_soup", baselines=("best copy",), seeds=(0, 1, 2), test_samples=0, beside=("one copy, the same updates",)
    ),
)
SPARSITIES, COPIES, STEPS, RATE = (0.6, 0.8, 0.9), 3, 60, 1e-3
DATA = f"A ViT of the digits pruned by size to {SPARSITIES[-1]:.0%} zeros of its matrices in three steps, {COPIES} copies of {STEPS} updates each"


def once(seed: int) -> dict[str, Any]:
    """Accuracies of the average, its copies, and a single chain that has the updates of all."""
    start = state(classifier(net="vit", seed=seed))
    soup, alone = start, start
    for phase, sparsity in enumerate(SPARSITIES):
        soup, alone = _pruned(soup, sparsity), _pruned(alone, sparsity)
        copies = [_retrained(soup, STEPS, 100 * seed + 10 * phase + copy, (0.0, 0.1, 0.3)[copy]) for copy in range(COPIES)]
        soup = merged("sparse_soup", soup, copies)
        alone = _retrained(alone, STEPS * COPIES, 100 * seed + 10 * phase, 0.1)
    zeros = {name: float((value == 0).float().mean()) for name, value in soup.items() if _is_pruned(name, value)}
    best = max(copies, key=lambda tensors: accuracy(net(tensors), *of("none", "validation")))
    told = lambda tensors: {"test": accuracy(net(tensors), *of("none", "test")), "ood": statistics.mean(over(tensors, TASKS))}
    return {"soup": told(soup), "best": told(best), "alone": told(alone), "zeros": [min(zeros.values()), max(zeros.values())]}


def _is_pruned(name: str, value: torch.Tensor) -> bool:
    return value.ndim == 2 and ".layers." in name


def _pruned(tensors: Tensors, sparsity: float) -> Tensors:
    found = dict(tensors)
    for name, value in tensors.items():
        if _is_pruned(name, value):
            count = round((1 - sparsity) * value.numel())
            places = value.abs().reshape(-1).topk(count).indices
            found[name] = torch.zeros_like(value).reshape(-1).index_copy(0, places, value.reshape(-1)[places]).reshape(value.shape)
    return found


def _retrained(tensors: Tensors, steps: int, order: int, decay: float) -> Tensors:
    model, (x, y) = net(tensors), of("none", "train")
    masks = {name: value != 0 for name, value in tensors.items() if _is_pruned(name, value)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=decay)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _, places in zip(range(steps), drawn(len(x), 64, order)):
        loss = classes(model, (x[places], y[places]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask)
    return {name: value.detach().clone() for name, value in model.eval().state_dict().items()}


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    names = {setting.method: "soup", setting.baselines[0]: "best", setting.beside[0]: "alone"}
    rows = [
        {
            "option": option,
            "test accuracy": [each[name]["test"] for each in found],
            "on corrupted pictures": [each[name]["ood"] for each in found],
        }
        for option, name in names.items()
    ]
    gains = [each["soup"]["test"] - each["best"]["test"] for each in found]
    shifted = [each["soup"]["ood"] - each["best"]["ood"] for each in found]
    exact = all(abs(end - SPARSITIES[-1]) < 1e-3 for each in found for end in each["zeros"])
    conditions = {
        "every matrix has the share of zeros asked for": exact,
        "better on corrupted pictures, in the mean": statistics.mean(shifted) > 0,
    }
    show(result(CLAIM, kept, rows, gains, {"gain on corrupted pictures": shifted}, conditions, DATA))


if __name__ == "__main__":
    main()
