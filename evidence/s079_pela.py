"""S079, PELA: layers factored to half their size and taught by what the whole net sees, before a task is learnt, against learning it at once."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch.nn import functional as F

from common import Claim, Setting, result, show
from modicum.train.learning import plan_of
from modicum.train.trained import Trained
from scenes import digits
from scenes.training import classes, drawn
from small import row, shared, worth

FIRST, THEN, RANK, NOISE, RATE, ROWS, TASK = 100, 60, 12, 0.01, 2e-3, 300, "noise"
DATA = (
    f"A ViT trained on clean digits; its layers at rank {RANK} see {FIRST} batches of those without labels, then learn {ROWS} noisy ones in {THEN} "
    "updates"
)

CLAIM = Claim(
    id="S079",
    system="PELA",
    claim="Factor all linear layers by truncated SVD, then recover with feature distillation from the frozen original and weight perturbation "
    "regularization; the half-size model fine-tuned must beat plain SVD plus fine-tuning.",
    metric="test loss on noisy digits of plain factors that had all updates for the task, or as many as the other, whichever is better, minus PELA's",
    margin=2.0,
    setting=Setting(method="PELA", baselines=("factors, all updates", "factors, the task's updates"), test_samples=0),
)


def once(way: str, seed: int) -> dict[str, float]:
    """From the net of clean digits to the task, by one way."""
    model = digits.opened(digits.classifier(net="vit", seed=seed), "vit")
    teacher = copy.deepcopy(model).eval()
    (clean, _), (x, y) = digits.pictures("train"), (each[:ROWS] for each in digits.pictures("train", TASK))
    with Trained(model, plan_of(model, f"low_rank rank={RANK}"), seed=seed, total=FIRST + THEN) as t:
        if way == "PELA":
            _learn(t, ((clean[places], None) for places in drawn(len(clean), 64, seed)), FIRST, functools.partial(_seen, t, teacher))
        steps = THEN + FIRST * (way == "factors, all updates")
        _learn(t, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), steps, lambda batch: classes(model, batch))
        model.eval()
        values = sum(form.values for name, form in t.forms().items() if str(t.places[name].method) != "dense")
        size = sum(place.unit.size for place in t.places.values() if str(place.method) != "dense")
        return {**worth(model, TASK), "values": values, "share of the whole layers": values / size}


def _seen(t: Trained, teacher: torch.nn.Module, batch: Any) -> torch.Tensor:
    """How far hidden states are from the teacher's while factors are moved by chance."""
    moved = {parameter: NOISE * parameter.detach().abs().mean() * torch.randn_like(parameter) for parameter in t.parameters()}
    with torch.no_grad():
        wanted = teacher(batch[0], output_hidden_states=True).hidden_states
        for parameter, by in moved.items():
            parameter.add_(by)
    found = t.module(batch[0], output_hidden_states=True).hidden_states
    loss = sum((F.mse_loss(a, b) for a, b in zip(found[1:], wanted[1:])), torch.zeros(()))
    loss.backward()
    with torch.no_grad():
        for parameter, by in moved.items():
            parameter.sub_(by)
    return loss


def _learn(t: Trained, batches: Any, steps: int, loss: Any) -> None:
    optimizer = torch.optim.AdamW(t.parameters(), lr=RATE, weight_decay=0.0)
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _, batch in zip(range(steps), batches):
        optimizer.zero_grad()
        found = loss(batch)
        if batch[1] is not None:
            found.backward()
        torch.nn.utils.clip_grad_norm_(t.parameters(), 1.0)
        optimizer.step()
        pace.step()


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(way, [kept(f"factored, {way}, seed {seed}", functools.partial(once, way, seed)) for seed in setting.seeds])
        for way in (setting.method, *setting.baselines)
    ]
    gains = [min(a, b) - mine for mine, a, b in zip(*(each["loss"] for each in rows))]
    conditions = {"half of the numbers at most": rows[0]["share of the whole layers"][0] <= 0.5}
    show(result(CLAIM, kept, rows, gains, {}, conditions, DATA))


if __name__ == "__main__":
    main()
