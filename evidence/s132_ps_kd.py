"""S132, progressive self-distillation: targets refined by what the net said a pass ago, against hard and smoothed ones."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from common import Claim, Setting, result, show
from modicum.train.self_distillation import calibration_error, refined, share_of
from scenes import digits
from scenes.training import drawn
from small import less, row, shared

PASSES, BATCH, ROWS, SMOOTH, LAST = 40, 50, 300, 0.1, 0.8
DATA = f"scikit-learn's digits at 16 by 16 under noise, {ROWS} to learn in {PASSES} passes and 497 to report"

CLAIM = Claim(
    id="S132",
    system="PS-KD",
    claim="Soft targets (1-a_t)*onehot + a_t*previous-epoch prediction with a_t growing linearly; a small CNN must gain accuracy and lower "
    "calibration error against cross-entropy and label smoothing.",
    metric="accuracy with refined targets minus the better of hard and smoothed ones'",
    margin=2.0,
    setting=Setting(
        method="refined targets", baselines=("hard targets", "smoothed targets"), seeds=(0, 1, 2, 3, 4), test_samples=0
    ),
)  # fmt: skip


def once(way: str, seed: int) -> dict[str, float]:
    """Train on targets made in one way; loss, accuracy and calibration error on the test part."""
    torch.manual_seed(seed)
    model, (x, y) = digits.Conv(), (each[:ROWS] for each in digits.pictures("train", "noise", seed=seed))
    steps, past = PASSES * ROWS // BATCH, torch.full((ROWS, 10), 0.1)
    said = past.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, places in zip(range(steps), drawn(ROWS, BATCH, seed)):
        if step % (ROWS // BATCH) == 0:
            past = said.clone()
        own = {"refined targets": share_of(step, steps, LAST) if step >= ROWS // BATCH else 0.0, "smoothed targets": SMOOTH}.get(way, 0.0)
        targets = refined(y[places], past[places] if way == "refined targets" else torch.full((len(places), 10), 0.1), own)
        logits = model(x[places])
        said[places] = logits.detach().softmax(1)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
    model.eval()
    new, labels = digits.pictures("test", "noise", seed=seed + 1000)
    found = digits.logits(model, new)
    return {
        "loss": float(F.cross_entropy(found, labels)), "accuracy": float((found.argmax(1) == labels).float().mean()),
        "calibration error": calibration_error(found.softmax(1), labels),
    }  # fmt: skip


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(way, [kept(f"targets {way}, seed {seed}", functools.partial(once, way, seed)) for seed in setting.seeds])
        for way in (setting.method, *setting.baselines)
    ]
    gains = [mine - max(others) for mine, *others in zip(*(each["accuracy"] for each in rows))]
    means = [sum(each["calibration error"]) for each in rows]
    conditions = {"lower calibration error than both in the mean": means[0] < min(means[1:])}
    figures = {"by how much the loss is lower than under hard targets": less(rows[0], rows[1])}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
