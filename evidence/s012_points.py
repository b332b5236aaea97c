"""S012, distillation on point clouds: neighbourhoods of the points that matter, against features of all points alike."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from common import Claim, Setting, result, show
from modicum.train.point_distillation import importance, local_distillation
from scenes.clouds import CLASSES, Net, clouds
from scenes.training import drawn
from small import less, row, shared

STEPS, TEACHER, STUDENT, ROWS, POINTS, STRENGTH = 200, 48, 24, 160, 24, 0.1

CLAIM = Claim(
    id="S012",
    system="PointDistiller",
    claim="Distill neighbourhood-graph features (kNN plus dynamic graph conv) of the most important points/voxels, weighted by importance, into a "
    "4x smaller point-cloud net; the student must beat plain feature distillation.",
    metric="test loss of a student of plain feature distillation minus that of one of neighbourhoods, half of the teacher's width",
    margin=2.0,
    setting=Setting(method="neighbourhoods", baselines=("features",), beside=("alone", "teacher"), test_samples=0),
)
DATA = f"Noisy clouds of 64 points on {CLASSES} kinds of surface, turned about one axis; {ROWS} to learn and 400 to report"


def once(seed: int) -> dict[str, dict[str, float]]:
    """Loss and accuracy on new clouds of a teacher and its students."""
    (x, y), (new, labels) = clouds(ROWS, seed), clouds(400, 10_000)
    torch.manual_seed(seed)
    teacher = fitted(Net(TEACHER), None, way="alone", seed=seed, x=x, y=y)
    models = {"teacher": teacher}
    for way in ("neighbourhoods", "features", "alone"):
        torch.manual_seed(seed)
        models[way] = fitted(Net(STUDENT), teacher, way=way, seed=seed, x=x, y=y)
    found = {}
    for name, model in models.items():
        with torch.no_grad():
            logits = model(new)[0]
        found[name] = {
            "loss": float(F.cross_entropy(logits, labels)), "accuracy": float((logits.argmax(1) == labels).float().mean()),
            "parameters": sum(each.numel() for each in model.parameters()),
        }  # fmt: skip
    return found


def fitted(model: Net, teacher: Net | None, *, way: str, seed: int, x: torch.Tensor, y: torch.Tensor) -> Net:
    """Train a net, beside a teacher where there is one."""
    across = torch.nn.Linear(STUDENT, TEACHER, bias=False)
    optimizer = torch.optim.AdamW([*model.parameters(), *across.parameters()], lr=5e-3)
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _, places in zip(range(STEPS), drawn(len(x), 32, seed)):
        logits, features = model(x[places])
        loss = F.cross_entropy(logits, y[places])
        if teacher is not None and way != "alone":
            with torch.no_grad():
                _, wanted = teacher(x[places])
            if way == "features":
                loss = loss + STRENGTH * (across(features) - wanted).square().mean()
            else:
                loss = loss + STRENGTH * local_distillation(across(features), wanted, x[places], importance(wanted), points=POINTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
    return model.eval()


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    found = [kept(f"points, seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    rows = [row(way, [each[way] for each in found]) for way in (setting.method, *setting.baselines, *setting.beside)]
    conditions = {"less than a third of the teacher's numbers": rows[0]["parameters"][0] <= rows[3]["parameters"][0] / 3.5}
    show(result(CLAIM, kept, rows, less(rows[0], rows[1]), {"against no teacher": less(rows[0], rows[2])}, conditions, DATA))


if __name__ == "__main__":
    main()
