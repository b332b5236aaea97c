"""S118, D-Pruner: half of the weights of a decoder of sources go for a domain of prose, and it is judged on both.

All methods calibrate on windows of the domain's training part. D-Pruner's general importance comes of text that the decoder writes itself, which
is like what it was trained on. Embedding and head, which are one table, stay as they are.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from pruning import EMBEDDING
from scenes.decoder import decoder
from scenes.domains import windows
from scenes.training import next_token

CLAIM = Claim(
    id="S118",
    system="D-Pruner",
    claim="Estimate general weight importance on open-domain text, put it as a quadratic preservation term in the domain loss, take gradient "
    "importance of that loss, prune 50%; domain plus general perplexity must beat Wanda/SparseGPT.",
    metric="log perplexity on the domain plus that on what the model was trained on, of the better of Wanda and SparseGPT minus D-Pruner's, half of "
    "the weights of each layer kept",
    margin=2.0,
    setting=Setting(
        method="dpruner keep=0.5",
        baselines=("wanda keep=0.5", "sparsegpt keep=0.5"),
        beside=("dpruner keep=0.5 preserve=0", "magnitude keep=0.5 per_row=true"),
    ),
)
GRADIENTS, JUDGED = 32, 64


def fitted(text: str, seed: int, folder: str) -> dict[str, Any]:
    """Perplexities and bytes of one option by one seed."""
    import modicum

    rows = windows("prose", "train")
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    batches = [{"input_ids": each} for each in rows[:64].split(8)]  # 60 % of batches calibrate
    made = modicum.fit(
        folder, method=text, target="modicum", seed=seed, data=batches, tokens=128, gradient_samples=GRADIENTS, keep=EMBEDDING,
        allow_broken=True,
    )  # fmt: skip
    of = {
        name: _loss(made.model, windows(domain, "test")[seed::3][:JUDGED]) for name, domain in (("domain", "prose"), ("general", "sources"))
    }
    return {"log_perplexity": sum(of.values()), **of, "bytes": made.receipt["bytes"]["actual"]}


@torch.no_grad()
def _loss(module: torch.nn.Module, rows: torch.Tensor) -> float:
    return statistics.mean(float(next_token(module.eval(), part)) for part in rows.split(16))


def main() -> None:
    kept, setting, made = Kept.of(CLAIM.id), CLAIM.setting, decoder()
    found = {
        text: [kept(f"{text}, seed {seed}", functools.partial(fitted, text, seed, str(made.folder))) for seed in setting.seeds]
        for text in (setting.method, *setting.baselines, *setting.beside)
    }
    row = lambda text: {"option": text, **{name: [each[name] for each in found[text]] for name in found[text][0]}}
    best, *others = sorted(setting.baselines, key=lambda text: statistics.mean(each["log_perplexity"] for each in found[text]))
    gains = [b["log_perplexity"] - a["log_perplexity"] for a, b in zip(found[setting.method], found[best])]
    same = all(a["bytes"] == b["bytes"] for a, b in zip(found[setting.method], found[best]))
    figures = {
        f"{text}, perplexity on {domain}": math.exp(statistics.mean(each[domain] for each in found[text]))
        for text in found for domain in ("domain", "general")
    }  # fmt: skip
    data = "a Llama of a million weights, trained on sources of Python's library; the domain is prose of its help, which it never saw"
    rows = [row(text) for text in (setting.method, best, *others, *setting.beside)]
    show(result(CLAIM, kept, rows, gains, figures, {"same bytes": same}, data))


if __name__ == "__main__":
    main()
