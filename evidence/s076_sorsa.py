"""S076, SORSA: singular values and vectors trained apart, vectors kept near orthonormal, against PiSSA at equal rank."""

from __future__ import annotations

import torch

from adapting import DATA, adapted, means, row, shared
from common import Claim, Setting, result, show
from modicum.train.trained import Trained

CLAIM = Claim(
    id="S076",
    system="SORSA",
    claim="Train top-r U,S,V separately with penalty |U^T U-I|^2+|V^T V-I|^2 and frozen residual; step-0 equality, exact merge, near-orthonormal "
    "factors after training, and loss no worse than PiSSA at equal rank.",
    metric="held-out loss of PiSSA, and 0.01 nats more, minus that of SORSA, same rank and windows, each at its own best rate",
    margin=2.0,
    setting=Setting(method="sorsa rank=8", baselines=("pissa rank=8",), beside=("sorsa rank=8 strength=0", "lora rank=8"), test_samples=0),
)
ALLOWED, NEAR = 0.01, 0.05


def orthonormal(t: Trained) -> float:
    """Mean distance of vectors from orthonormal ones, in the Frobenius norm, as a share of the root of their number."""
    off = lambda vectors: float((vectors @ vectors.T - torch.eye(len(vectors))).norm()) / len(vectors) ** 0.5
    states = [place.state for place in t.places.values()]
    return sum(off(state["u"].detach().T) + off(state["v"].detach()) for state in states) / (2 * len(states))


def merged(t: Trained) -> float:
    """Largest difference of a merged weight from the weight in training."""
    delta = t.delta()
    return max(float((delta.weight(name, t.places[name].base.dense()) - t.weight(name).detach()).abs().max()) for name in t.places)


def facts(t: Trained) -> dict[str, float]:
    return {"orthonormal": orthonormal(t), "merged": merged(t)}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    found = {plan: adapted(kept, plan, setting.seeds) for plan in (*setting.baselines, setting.beside[1])}
    for plan in (setting.method, setting.beside[0]):
        found[plan] = adapted(kept, plan, setting.seeds, seen=facts)
    plans = (setting.method, *setting.baselines, *setting.beside)
    gains = [b + ALLOWED - a for a, b in zip(means(found[setting.method], "loss"), means(found[setting.baselines[0]], "loss"))]
    of = lambda plan, name: [each["seen"][name] for each in found[plan]]
    figures = {
        "distance from orthonormal vectors after training": of(setting.method, "orthonormal"),
        "the same without the penalty": of(setting.beside[0], "orthonormal"), "largest difference of a merged weight": of(setting.method, "merged"),
    }  # fmt: skip
    conditions = {
        f"vectors within {NEAR} of orthonormal, and nearer than without the penalty": max(of(setting.method, "orthonormal")) < NEAR
        and max(of(setting.method, "orthonormal")) < min(of(setting.beside[0], "orthonormal")),
        "merged exactly": max(of(setting.method, "merged")) == 0,
    }  # fmt: skip
    show(result(CLAIM, kept, [row(plan, found[plan]) for plan in plans], gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
