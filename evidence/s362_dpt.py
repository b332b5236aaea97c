"""S362, decomposed prompt tuning: a prompt as a product of two thin matrices, against the whole prompt, on the decoder that learns prose."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from adapting import adapted, before, data, means, row, shared
from common import Claim, Setting, result, show
from modicum.train.trained import Trained

CLAIM = Claim(
    id="S362",
    system="Decomposed Prompt Tuning (DPT)",
    claim="Write the soft prompt as a product of two low-rank matrices before a frozen LM and train only them; few-shot accuracy equals full prompt "
    "tuning with a fraction of prompt parameters, singular-value report included.",
    metric="fall of held-out loss under the product minus nine tenths of that under the whole prompt",
    margin=2.0,
    setting=Setting(method="dpt tokens=20 rank=4", baselines=("prompt tokens=20",), test_samples=0),
)
SHARE, RATES = 0.9, (1e-2, 3e-2, 1e-1)


def spectrum(t: Trained) -> list[float]:
    """Singular values of the prompt, as shares of the largest."""
    tensors = dict(t.asides[0].state.trained)
    prompt = tensors["left"] @ tensors["right"] if "left" in tensors else next(iter(tensors.values()))
    values = torch.linalg.svdvals(prompt.detach().float())
    return (values / values[0]).tolist()


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    untrained = kept("before", before)
    plans = (setting.method, *setting.baselines)
    found: dict[str, list[dict[str, Any]]] = {plan: adapted(kept, plan, setting.seeds, RATES, seen=spectrum) for plan in plans}
    falls = {plan: [untrained - loss for loss in means(each, "loss")] for plan, each in found.items()}
    gains = [mine - SHARE * whole for mine, whole in zip(falls[setting.method], falls[setting.baselines[0]])]
    trained = {plan: each[0]["trained"] for plan, each in found.items()}
    energy = lambda values: sum(value**2 for value in values[:4]) / sum(value**2 for value in values)
    figures = {
        "held-out loss before training": untrained,
        "singular values of the whole prompt, relative, first seed": [round(value, 3) for value in found[setting.baselines[0]][0]["seen"]],
        "share of the whole prompt's energy in its first four directions": statistics.mean(
            energy(each["seen"]) for each in found[setting.baselines[0]]
        ),
    }
    conditions = {
        "at most a quarter of the prompt's numbers": trained[plans[0]] <= 0.25 * trained[plans[1]],
        "better than the base in every seed": min(falls[setting.method]) > 0,
    }
    show(result(CLAIM, kept, [row(plan, each) for plan, each in found.items()], gains, figures, conditions, data(3)))


if __name__ == "__main__":
    main()
