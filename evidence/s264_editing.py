"""S264, editing of changes: which edits a fine-tuned net takes, told before from gradients along the way."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch.nn import functional as F

from common import Claim, Setting, result, show
from kept import Kept
from modicum.merging.riemann import predicted
from scenes.tuned import net, of, state, tuned
from tasks import Tensors, base, merged

EDITS = (
    "delta_editing drop=0.3", "delta_editing drop=0.7", "delta_editing drop=0.9", "delta_editing drop=0.9 left=0.5", "delta_editing "
    "drop=0.5 left=-0.5",
    "delta_editing signs=true", "delta_editing signs=true scale=0.7", "delta_editing scale=0.3", "delta_editing scale=0.7",
    "delta_editing scale=1.3", "delta_editing scale=2", "rank 2", "rank 8",
)  # fmt: skip
CLAIM = Claim(
    id="S264",
    system="Unified delta-parameter editing (Riemann sum)",
    claim="Applies DARE, BitDelta, low rank and extrapolation to a fine-tuned model's delta; the Riemann-sum loss-difference estimate "
    "predicts which edits "
    "are competitive, decreased or improved, and generalized DARE/BitDelta variants run.",
    metric="rank correlation over the edits between the change of the loss on test pictures and what was predicted on validation pictures, "
    "minus that with "
    "the size of the edit",
    margin=2.0,
    setting=Setting(method="Riemann sum of 4 points", baselines=("size of the edit",), seeds=(0, 1, 2), test_samples=0),
)
TASK, BAND = "noise", 0.02  # an edit is competitive where the loss changes by no more
DATA = f"A ViT trained on clean digits, fine-tuned on noisy ones; {len(EDITS)} edits of what it learnt there"


def edited(text: str, before: Tensors, model: Tensors, seed: int) -> Tensors:
    """The model whose change was edited."""
    if not text.startswith("rank"):
        return merged(text, before, [model], seed=seed)
    found = dict(model)
    for name, value in model.items():
        if value.ndim == 2 and ".layers." in name:
            left, size, right = torch.linalg.svd(value - before[name], full_matrices=False)
            rank = int(text.split()[1])
            found[name] = before[name] + (left[:, :rank] * size[:rank]) @ right[:rank]
    return found


def once(seed: int) -> dict[str, Any]:
    """What is predicted of each edit, its size, and what comes, by one seed."""
    before, model = base(seed), state(tuned(task=TASK, seed=seed))
    module, parts = net(model), {part: of(TASK, part, 2) for part in ("validation", "test")}
    on = lambda part: lambda call: F.cross_entropy(call(parts[part][0]).logits, parts[part][1])
    made = {text: edited(text, before, model, seed) for text in EDITS}
    with torch.no_grad():
        losses = {text: float(on("test")(net(tensors))) for text, tensors in made.items()}
        whole = float(on("test")(module))
    return {
        "came": [losses[text] - whole for text in EDITS],
        "predicted": [predicted(module, model, made[text], on("validation")) for text in EDITS],
        "size": [math.sqrt(sum(float((made[text][name] - model[name]).square().sum()) for name in model)) for text in EDITS],
    }  # fmt: skip


def correlation(one: list[float], other: list[float]) -> float:
    """Of ranks."""
    ranks = [torch.tensor(each, dtype=torch.float64).argsort().argsort().double() for each in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def kind(change: float) -> int:
    """-1 for improved, 0 for competitive, 1 for decreased."""
    return 0 if abs(change) <= BAND else (1 if change > 0 else -1)


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    told, size = ([correlation(each["came"], each[way]) for each in found] for way in ("predicted", "size"))
    rows = [{"option": setting.method, "rank correlation": told}, {"option": setting.baselines[0], "rank correlation": size}]
    alike = [sum(kind(a) == kind(b) for a, b in zip(each["came"], each["predicted"])) / len(EDITS) for each in found]
    met = [len({kind(change) for change in each["came"]}) for each in found]
    figures = {"share of edits whose class is told": alike, "classes met": met}
    conditions = {"the class of at least four edits in five is told, in every seed": min(alike) >= 0.8}
    show(result(CLAIM, kept, rows, [a - b for a, b in zip(told, size)], figures, conditions, DATA))


if __name__ == "__main__":
    main()
