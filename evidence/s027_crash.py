"""S027, CRaSh: the ends of a deep decoder are tuned where alike blocks stand for each other, and plugged into the whole, against blocks left out."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from adapting import BATCH, STEPS, TOKENS, part, rows
from classifying import at_best
from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.changed import changed
from modicum.train.emulated import emulated
from modicum.train.loop import train
from modicum.train.settings import Loop
from modicum.train.trained import trained
from scenes.decoder import decoder, text
from scenes.domains import losses, opened

CLAIM = Claim(
    id="S027",
    system="CRaSh",
    claim="Cluster adjacent layers by CKA similarity, remove layers within clusters, share the survivors to restore depth as an emulator; adapters "
    "tuned on it and plugged into the full model must beat uniform layer-drop offsite tuning.",
    metric="held-out loss of the whole decoder with ends tuned on blocks left out evenly minus that with ends tuned on clustered and shared blocks",
    margin=2.0,
    setting=Setting(method="clustered and shared", baselines=("dropped evenly",), beside=("tuned on the whole",), test_samples=0),
)
LAYERS, WIDTH, SCENE_STEPS, KEEP = 8, 32, 400, 3
RATES = (5e-4, 1e-3, 2e-3)
ENDS = {f"model.layers.{at}.*": "full" for at in (0, LAYERS - 1)}
DATA = (
    f"A decoder of {LAYERS} blocks and width {WIDTH}, trained on sources: its first and last block learn prose on an emulator with {KEEP} of the "
    f"{LAYERS - 2} blocks between, in {STEPS} updates of {BATCH} windows of {TOKENS} tokens, and are plugged into the whole; judged on 256 windows "
    f"of help topics; each at its best of {len(RATES)} rates on 96 validation windows"
)


class Passing(nn.Module):
    """In the place of a block that is left out."""

    def forward(self, hidden: torch.Tensor, **_: Any) -> torch.Tensor:
        """What it is given."""
        return hidden


@contextmanager
def dropped(module: Any) -> Iterator[None]:
    """Evenly chosen middle blocks alone."""
    whole, middle = module.model.layers, LAYERS - 2
    kept = {1 + round((at + 0.5) * middle / KEEP - 0.5) for at in range(KEEP)}
    module.model.layers = nn.ModuleList(block if at in {0, LAYERS - 1, *kept} else Passing() for at, block in enumerate(whole))
    try:
        yield
    finally:
        module.model.layers = whole


def emulator(name: str, module: nn.Module) -> AbstractContextManager[Any]:
    if name == "dropped evenly":
        return dropped(module)
    return emulated(module, [{"input_ids": text()[:8, :TOKENS]}], LAYERS - 2 if name == "tuned on the whole" else KEEP)


def once(name: str, rate: float, seed: int, judged: str) -> dict[str, Any]:
    """Losses of the whole with what was learnt on an emulator, and of the emulator itself before and after."""
    module = opened(decoder(width=WIDTH, layers=LAYERS, steps=SCENE_STEPS))
    ids, steps = part(judged, 256 if judged == "test" else 96), STEPS if judged == "test" else STEPS // 2
    mean = lambda: float(losses(module, ids).mean())
    with emulator(name, module):
        before = mean()
        with trained(module, ENDS, seed=seed, total=steps) as t:
            train(module, t, rows(part("train")), Loop(steps=steps, rate=rate, batch=BATCH, seed=seed))
            after, learnt, count = mean(), t.delta(), t.count
    with changed(module, learnt):
        found = mean()
    return {"score": found, "emulator": [before, after], "trained": count}


def untuned() -> float:
    return float(losses(opened(decoder(width=WIDTH, layers=LAYERS, steps=SCENE_STEPS)), part("test", 256)).mean())


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    before = kept("before", untuned)
    names = (setting.method, *setting.baselines, *setting.beside)
    found = {name: at_best(kept, name, functools.partial(once, name), RATES, setting.seeds) for name in names}
    plugged = {name: [one["score"] for one in each] for name, each in found.items()}
    gains = [other - mine for mine, other in zip(plugged[setting.method], plugged["dropped evenly"])]
    made = [
        {
            "option": name, "loss, plugged in": plugged[name], "loss of the emulator before": [one["emulator"][0] for one in each],
            "loss of the emulator after": [one["emulator"][1] for one in each], "trained": [one["trained"] for one in each],
            "rate": [one["rate"] for one in each],
        }
        for name, each in found.items()
    ]  # fmt: skip
    conditions = {"plugged in it is better than untuned": statistics.mean(plugged[setting.method]) < before}
    show(result(CLAIM, kept, made, gains, {"held-out loss untuned": before}, conditions, DATA))


if __name__ == "__main__":
    main()
