"""S155, Telly: the first blocks of the decoder rest and the others are fine-tuned whole, against all of them; and which blocks' outputs move."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from adapting import adapted, before, data, means, part, row, shared
from common import Claim, Setting, result, show
from modicum.train.trained import Trained
from scenes.decoder import decoder
from scenes.domains import opened

CLAIM = Claim(
    id="S155",
    system="Telly",
    claim="Freezes the bottom K layers of a small pretrained encoder, tunes the rest, reports score, trainable parameters and time versus full "
    "tuning; layer-wise RSA/probing shows mainly the top two layers' representations move.",
    metric="fall of held-out loss with the lower two of four blocks frozen minus 0.95 of that of full tuning",
    margin=2.0,
    setting=Setting(
        method="full | telly frozen=2", baselines=("full",), beside=("full | telly frozen=1", "full | telly frozen=3"), test_samples=0
    ),
)
SHARE, RATES, WINDOWS = 0.95, (5e-4, 1e-3, 2e-3, 4e-3), 8


@torch.no_grad()
def states(model: torch.nn.Module) -> list[torch.Tensor]:
    """Similarities of all pairs of windows, by their mean output, of each block."""
    hidden = model(input_ids=part("test", 4 * WINDOWS), output_hidden_states=True).hidden_states[1:]
    centred = [each.mean(1) - each.mean((0, 1)) for each in hidden]
    return [torch.nn.functional.normalize(each, dim=1) @ torch.nn.functional.normalize(each, dim=1).T for each in centred]


@functools.cache
def first() -> list[torch.Tensor]:
    """Those of the decoder as it was."""
    return states(opened(decoder()))


def moved(t: Trained) -> list[float]:
    """By block, one minus the correlation of similarities with those before training."""
    upper = torch.ones_like(first()[0], dtype=torch.bool).triu(1)
    pairs = zip(first(), states(t.module))
    return [1 - float(torch.corrcoef(torch.stack([one[upper], other[upper]]))[0, 1]) for one, other in pairs]


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    untrained = kept("before", before)
    plans = (setting.method, *setting.baselines, *setting.beside)
    found: dict[str, list[dict[str, Any]]] = {plan: adapted(kept, plan, setting.seeds, RATES, seen=moved) for plan in plans}
    falls = {plan: [untrained - loss for loss in means(each, "loss")] for plan, each in found.items()}
    gains = [mine - SHARE * whole for mine, whole in zip(falls[setting.method], falls["full"])]
    by_block = [statistics.mean(each["seen"][block] for each in found["full"]) for block in range(4)]
    seconds = {plan: statistics.mean(one["seconds"] for one in each) for plan, each in found.items()}
    figures = {
        "held-out loss before training": untrained,
        "how far each block's representations moved under full tuning (1 - RSA)": {f"block {n}": value for n, value in enumerate(by_block)},
        "seconds of a training": seconds,
        "share of full tuning's gain": {plan: statistics.mean(a / b for a, b in zip(falls[plan], falls["full"])) for plan in plans},
    }
    conditions = {
        "the upper two blocks moved most": min(by_block[2:]) > max(by_block[:2]),
        "less time than full tuning": seconds[setting.method] < seconds["full"],
    }
    show(result(CLAIM, kept, [row(plan, each) for plan, each in found.items()], gains, figures, conditions, data(4)))


if __name__ == "__main__":
    main()
