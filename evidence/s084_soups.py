"""S084, model soups: uniform and greedy, of one net fine-tuned under several settings."""

from __future__ import annotations

import functools
from typing import Any

from common import Claim, Setting, result, show
from kept import Kept
from modicum.merging.search import greedy
from scenes.digits import accuracy
from scenes.tuned import net, of, state, tuned
from tasks import base, merged

CLAIM = Claim(
    id="S084",
    system="Model soups",
    claim="Fine-tune one checkpoint under several hyperparameter settings; uniform and greedy soups (add only if validation improves) must be built, "
    "greedy matching or beating the best single model at single-model inference cost.",
    metric="test accuracy of the greedy soup minus that of the model that is best on validation data",
    margin=2.0,
    setting=Setting(method="soup recipe=greedy", baselines=("best single model",), seeds=(0, 1, 2), test_samples=0, beside=("soup",)),
)
SETTINGS = [{"rate": rate, "order": order, "smooth": smooth} for rate in (5e-4, 1e-3) for order in (0, 1) for smooth in (0.0, 0.1)]
TASK = "noise"
DATA = f"A ViT trained on clean digits, fine-tuned on noisy ones under {len(SETTINGS)} settings: rates, orders of the data, smoothings of labels"


def once(seed: int) -> dict[str, Any]:
    """Accuracies of all by one seed."""
    models = [state(tuned(task=TASK, seed=seed, **settings)) for settings in SETTINGS]
    judge = lambda part: lambda tensors: accuracy(net(tensors), *of(TASK, part, 2))
    validation, test = judge("validation"), judge("test")
    single = [validation(model) for model in models]
    chosen = greedy(lambda weights: validation(merged("soup", base(seed), models, weights)), len(models))
    return {
        "best": test(models[single.index(max(single))]), "greedy": test(merged("soup", base(seed), models, chosen.weights)),
        "uniform": test(merged("soup", base(seed), models)), "taken": sum(weight > 0 for weight in chosen.weights),
        "singles": sorted(test(model) for model in models),
    }  # fmt: skip


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    names = {setting.method: "greedy", setting.baselines[0]: "best", setting.beside[0]: "uniform"}
    rows = [{"option": option, "test accuracy": [each[name] for each in found]} for option, name in names.items()]
    gains = [each["greedy"] - each["best"] for each in found]
    figures = {
        "models taken by the greedy soup": [each["taken"] for each in found],
        "test accuracies of single models": [each["singles"] for each in found],
    }
    show(result(CLAIM, kept, rows, gains, figures, {}, DATA))


if __name__ == "__main__":
    main()
