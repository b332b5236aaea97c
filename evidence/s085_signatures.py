"""S085, robust weight signatures: what noise teaches one model, quantized, added to another one that was trained on colours."""

from __future__ import annotations

import functools
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from scenes.digits import accuracy
from scenes.tuned import net, of, state, tuned
from tasks import Tensors, merged

CLAIM = Claim(
    id="S085",
    system="Robust Weight Signatures (RWS)",
    claim="Take shallow-layer differences between corruption-trained and clean models, project and quantize them, add scaled copies to a model "
    "trained on another dataset; corrupted accuracy rises, removal restores weights exactly, two signatures compose.",
    metric="test accuracy on coloured digits with noise, of the model of coloured ones, with the signature minus without",
    margin=2.0,
    setting=Setting(method="robust_signature depth=0.5 bits=4", baselines=("no signature",), seeds=(0, 1, 2), test_samples=0),
)
SCALES = (0.25, 0.5, 0.75, 1.0, 1.5)
DATA = (
    "A ViT fine-tuned on clean, noisy, covered and coloured digits; signatures are learnt on white digits and added to the net of coloured ones; "
    "scales chosen on validation pictures"
)


def once(seed: int) -> dict[str, Any]:
    """Accuracies with and without signatures by one seed."""
    clean, host = (state(tuned(task=task, seed=seed)) for task in ("none", "coloured"))
    signatures = {task: _moved(host, clean, state(tuned(task=task, seed=seed))) for task in ("noise", "covered")}
    score = lambda tensors, task, part="test": accuracy(net(tensors), *of(f"coloured {task}", part, 3))
    patched = lambda models, scale: merged(f"{CLAIM.setting.method} scale={scale}", host, models)
    added = {}
    for task, model in signatures.items():
        best = max(SCALES, key=lambda scale: score(patched([model], scale), task, "validation"))
        added[task] = patched([model], best)
    both_scale = max(
        SCALES, key=lambda scale: sum(score(patched(list(signatures.values()), scale), task, "validation") for task in signatures)
    )
    both = patched(list(signatures.values()), both_scale)
    whole = merged("task_arithmetic", host, [signatures["noise"]])
    return {
        "without": {task: score(host, task) for task in signatures}, "with": {task: score(added[task], task) for task in signatures},
        "both": {task: score(both, task) for task in signatures}, "whole difference": score(whole, "noise"),
        "restored": _restored(host, added["noise"]), "clean": [accuracy(net(each), *of("coloured", "test", 3)) for each in (host, added["noise"])],
    }  # fmt: skip


def _moved(host: Tensors, clean: Tensors, robust: Tensors) -> Tensors:
    """The host with what one model has otherwise than another."""
    return {name: (value.double() + robust[name].double() - clean[name].double()).float() for name, value in host.items()}


def _restored(host: Tensors, patched: Tensors) -> bool:
    """Whether taking the signature away by its stored bits gives the host to the bit."""
    kept = {name: host[name].view(torch.int32) ^ patched[name].view(torch.int32) for name in host}
    return all(torch.equal((patched[name].view(torch.int32) ^ kept[name]).view(torch.float32), host[name]) for name in host)


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    rows = [
        {
            "option": option,
            **{f"accuracy with {task}": [each[side][task] for each in found] for task in ("noise", "covered")},
            "accuracy without corruption": [each["clean"][place] for each in found],
        }
        for option, side, place in ((setting.method, "with", 1), (setting.baselines[0], "without", 0))
    ]
    gains = [each["with"]["noise"] - each["without"]["noise"] for each in found]
    composed = [sum(each["both"].values()) - sum(each["without"].values()) for each in found]
    figures = {
        "both signatures, sum of both gains": composed,
        "the whole difference instead of its signature": [each["whole difference"] for each in found],
    }
    conditions = {
        "removal restores every bit": all(each["restored"] for each in found),
        "two signatures compose in every seed": min(composed) > 0,
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
