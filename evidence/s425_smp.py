"""S425, static model pruning: a task learnt by a mask alone, against magnitudes and movements with weights that are trained."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from common import Claim, Setting, result, show
from modicum.core.parametrization import Start, State, Step
from modicum.restrict._family import through
from modicum.restrict.smp import Smp
from modicum.train.learning import plan_of
from scenes import digits
from small import fitted, less, row, shared

CLAIM = Claim(
    id="S425",
    system="SMP (Static Model Pruning)",
    claim="Freeze pretrained weights, learn only importance scores by straight-through gradients with scheduled sparsity; at high sparsity task "
    "accuracy beats magnitude and movement baselines, and the task stores just a binary mask.",
    metric="test loss on noisy digits of the better of magnitude and movement pruning minus that of the mask on frozen weights, a tenth kept",
    margin=2.0,
    setting=Setting(
        method="smp keep=0.1", baselines=("gradual keep=0.1 since=0.0 until=0.6 every=5", "movement keep=0.1"),
        test_samples=0,
    ),
)  # fmt: skip
STEPS, TASK, RATES = 150, "noise", {"smp": 1e-2, "gradual": 1e-3, "movement": 1e-3}
DATA = f"A ViT trained on clean digits learns noisy ones in {STEPS} updates, 1000 to learn and 497 to report; rates chosen on validation pictures"


@dataclass(frozen=True, kw_only=True)
class Movement(Smp):
    """Scores begin at zero and sum where weights move away from zero; the weights are trained too."""

    def begin(self, start: Start) -> State:
        """All are as good at first."""
        made = super().begin(start)
        return State({"scores": torch.zeros_like(made["scores"]), "weight": made["weight"]}, made.frozen, made.common)

    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The weights used; gradients are both's."""
        return state.trained["weight"] * through(state["scores"], self.mask(state, step).float())


def once(method: str, seed: int) -> dict[str, float]:
    """From the net of clean digits to the task."""
    model = digits.opened(digits.classifier(net="vit", seed=seed), "vit")
    plan: dict[str, Any] = plan_of(model, method.replace("movement", "smp"))
    if method.startswith("movement"):
        plan = {name: Movement(keep=0.1) if option != "dense" else option for name, option in plan.items()}
    return fitted(model, plan, seed, STEPS, RATES[method.split()[0]], scratch=False, task=TASK)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(method, [kept(f"{method}, seed {seed}, {TASK}", functools.partial(once, method, seed)) for seed in setting.seeds])
        for method in (setting.method, *setting.baselines)
    ]
    best = [min(pair) for pair in zip(rows[1]["loss"], rows[2]["loss"])]
    gains = [other - mine for mine, other in zip(rows[0]["loss"], best)]
    bits = rows[0]["values"][0] * 10 / 8
    figures = {"bytes of a mask alone": bits, "against magnitude": less(rows[0], rows[1]), "against movement": less(rows[0], rows[2])}
    conditions = {"a mask is less than the weights kept": bits < rows[0]["values"][0] * 4}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
