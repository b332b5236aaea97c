"""S108, DSEE: a thin product and a few entries trained over a small BERT of half its weights, against full fine-tuning of the whole."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch

from classifying import at_best, learn
from common import Claim, Setting, result, show
from kept import Kept
from modicum.forms import Masked
from modicum.train.trained import trained
from scenes.encoder import accuracy, encoder, modules, opened
from scenes.training import drawn

CLAIM = Claim(
    id="S108",
    system="DSEE",
    claim="Update = low-rank UV + sparse residual on a fixed support found by decomposition, then prune pretrained weights or heads; with about 0.5% "
    "trainable parameters a small BERT keeps GLUE accuracy at 50% sparsity or fewer FLOPs.",
    metric="accuracy of DSEE at half sparsity plus two points, minus that of full fine-tuning of the dense encoder",
    margin=2.0,
    setting=Setting(
        method="magnitude keep=0.5 | dsee rank=1 keep=0.001",
        baselines=("shift",),
        beside=("magnitude keep=0.5 | lora rank=1", "dsee rank=1 keep=0.001"),
        test_samples=0,
    ),
)
STEPS, BATCH, KEEP, ALLOWED = 100, 32, 0.5, 0.02
RATES, WHOLE = (3e-3, 1e-2, 3e-2), (1e-4, 3e-4, 1e-3)
DATA = (
    f"A small BERT that tells modules of Python's library apart learns eight more by windows of 32 tokens, in {STEPS} updates of {BATCH}, judged on "
    "640 windows; the head is trained in all"
)


def once(said: str, rate: float, seed: int, part: str) -> dict[str, Any]:
    """Accuracy after training, as a score that is less where better, and the numbers trained but those of the head."""
    model, (x, y) = opened(encoder(), seed), modules("train")
    pruned, _, option = said.rpartition(" | ")
    names = [name for name, each in model.named_parameters() if ".layer." in name and each.dim() == 2]
    planned = names if option == "shift" else [name for name in names if "query" in name or "value" in name or "attention.output" in name]
    forms = {}
    for name in names if pruned else ():
        weight = model.get_parameter(name)
        mask = weight.abs() >= weight.detach().abs().flatten().kthvalue(round((1 - KEEP) * weight.numel()) + 1).values
        weight.data *= mask
        forms[name] = Masked.of(weight.detach(), mask)
    plan = dict.fromkeys(planned, option) | {"classifier.*": "shift"}
    with trained(model, plan, seed=seed, total=STEPS, forms={name: forms[name] for name in planned if name in forms}) as t:
        loss = lambda module, batch: torch.nn.functional.cross_entropy(module(input_ids=batch[0]).logits, batch[1])
        learn(t, ((x[places], y[places]) for places in drawn(len(x), BATCH, seed)), loss, rate, STEPS)
        head = sum(each.numel() for name, each in t.named_parameters().items() if name.startswith("classifier"))
        right, whole = accuracy(model, *modules(part)), sum(each.numel() for each in model.parameters())
        return {"score": -right, "trained": t.count - head, "share": (t.count - head) / whole}


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = {
        option: at_best(kept, option, functools.partial(once, option), WHOLE if option == "shift" else RATES, setting.seeds)
        for option in (setting.method, *setting.baselines, *setting.beside)
    }
    rows = [
        {
            "option": option, "accuracy": [-each["score"] for each in found[option]], "trained": [each["trained"] for each in found[option]],
            "share of all": [each["share"] for each in found[option]], "rate": [each["rate"] for each in found[option]],
        }
        for option in found
    ]  # fmt: skip
    gains = [a + ALLOWED - b for a, b in zip(rows[0]["accuracy"], rows[1]["accuracy"])]
    conditions = {"at most 0.6 per cent of the numbers": rows[0]["share of all"][0] < 0.006}
    figures = {"accuracy of full fine-tuning": statistics.mean(rows[1]["accuracy"]), "by chance": 1 / 8}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
