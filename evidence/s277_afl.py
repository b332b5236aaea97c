"""S277, analytic federated learning: heads of any partition of the clients give the head of all data."""

from __future__ import annotations

import functools
from typing import Any

import torch

import modicum
from common import Claim, Setting, result, show
from kept import Kept
from scenes.digits import classifier, opened, pictures

CLAIM = Claim(
    id="S277",
    system="AFL (Analytic Federated Learning)",
    claim="Each client solves a ridge head on frozen features; the absolute-aggregation law merges weights using Gram matrices in one round, and the "
    "result equals the centralized solution to numerical precision for any partition.",
    metric="test accuracy of the aggregated head minus that of the mean of the clients' heads, clients each with digits of mostly one class",
    margin=2.0,
    setting=Setting(method="afl", baselines=("average",), seeds=(0, 1, 2, 3, 4), test_samples=0),
)
CLIENTS, RIDGE, EXACT = (2, 10, 50, 250), 1.0, 1e-8
DATA = "Features of noisy digits by the net trained on clean ones; 1000 pictures divided among 2 to 250 clients, by class and by chance"


def once(seed: int) -> dict[str, Any]:
    """Differences from the head of all data by partition, and accuracies at 50 clients by class."""
    model = opened(classifier(net="conv", seed=seed))
    features = lambda x: torch.cat([model.features(x).double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    with torch.no_grad():
        (x, labels), (test, answers) = pictures("train", "noise", seed=seed), pictures("test", "noise", seed=seed + 1)
        x, test = features(x), features(test)
    y = torch.nn.functional.one_hot(labels, 10).double()
    central, worst, told = _head(x, y, RIDGE), 0.0, {}
    for clients in CLIENTS:
        for way, order in (
            ("class", labels.argsort(stable=True)),
            ("chance", torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))),
        ):
            parts = [(x[places], y[places]) for places in order.tensor_split(clients)]
            heads = [{"head": _head(*part, RIDGE)} for part in parts]
            grams = [{"head/gram": part.T @ part} for part, _ in parts]
            found = modicum.merge(heads[0], heads, method=f"afl ridge={RIDGE} target={RIDGE}", statistics=grams).tensors["head"]
            worst = max(worst, float((found - central).abs().max()))
            mean = modicum.merge(heads[0], heads, method="average").tensors["head"]
            told[f"{clients} by {way}"] = [float((test @ head.T).argmax(1).eq(answers).double().mean()) for head in (found, mean)]
    return {"worst": worst, "told": told, "central": float((test @ central.T).argmax(1).eq(answers).double().mean())}


def _head(x: torch.Tensor, y: torch.Tensor, ridge: float) -> torch.Tensor:
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1], dtype=torch.float64), x.T @ y).T.contiguous()


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    rows = [
        {"option": option, **{f"accuracy, {key}": [each["told"][key][place] for each in found] for key in found[0]["told"]}}
        for place, option in enumerate((setting.method, *setting.baselines))
    ]
    gains = [each["told"]["50 by class"][0] - each["told"]["50 by class"][1] for each in found]
    figures = {
        "largest difference from the head of all data": [each["worst"] for each in found],
        "accuracy of that": [each["central"] for each in found],
    }
    show(
        result(
            CLAIM,
            kept,
            rows,
            gains,
            figures,
            {f"every partition within {EXACT:g} of it": max(each["worst"] for each in found) < EXACT},
            DATA,
        )
    )


if __name__ == "__main__":
    main()
