"""S175, formats of a small language model: FP8 and INT8 weights and inputs, and INT4 weights, each as llm-compressor's schemes have them.

A Llama of a million weights, its table as it is. Beside perplexity and bytes stands how alike what is written is: from sixteen prompts of 16 tokens
the original and each format write 32 tokens greedily, and the share of tokens before the first that differs is counted. Times are not
compared: all forms are multiplied by PyTorch's dense products here.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

import torch
from torch import nn

from common import Claim, Setting, result, show
from kept import Kept
from pruning import EMBEDDING
from scenes.decoder import decoder
from scenes.domains import opened, windows

FORMATS = {
    "W8A8-FP8": "float8 | activations format=fp8",
    "W8A8-INT8": "gptq bits=8 group=0 symmetric=true | activations",
    "W4A16-INT4": "gptq bits=4 group=128 symmetric=true",
}
CLAIM = Claim(
    id="S175",
    system="BF16-or-Death quantization study",
    claim="Quantizes one small LM to W8A8-FP8, W8A8-INT8 and W4A16-INT4, reports task recovery, text similarity to the original, bytes and latency; "
    "FP8 is near lossless, and the table names the best format per deployment.",
    metric="mean KL to the original of INT4 weights minus that of FP8 weights and inputs",
    margin=2.0,
    setting=Setting(
        method="float8 | activations format=fp8",
        baselines=("gptq bits=4 group=128 symmetric=true",),
        beside=("gptq bits=8 group=0 symmetric=true | activations",),
    ),
)
PROMPTS, PROMPT, WRITTEN, NEAR = 16, 16, 32, 0.01


def fitted(text: str, seed: int, folder: str) -> dict[str, Any]:
    """Quality, bytes and likeness of one format."""
    import modicum

    setting = CLAIM.setting
    made = modicum.fit(
        folder, method=text, target="modicum", seed=seed, samples=setting.samples, tokens=setting.tokens,
        test_samples=setting.test_samples, keep=EMBEDDING, allow_broken=True,
    )  # fmt: skip
    quality, rows = made.receipt["quality"], windows("sources", "test")[seed::3][:PROMPTS, :PROMPT]
    one, other = (written(model, rows) for model in (opened(folder), made.model.float()))
    alike = (one == other)[:, PROMPT:].int().cumprod(1).float().mean()
    return {
        "rise of log perplexity": math.log(quality["perplexity"] / quality["perplexity_original"]), "divergence": quality["mean"],
        "share written alike": float(alike), "bytes": made.receipt["bytes"]["actual"],
    }  # fmt: skip


@torch.no_grad()
def written(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Rows with what a model writes after them, greedily."""
    for _ in range(WRITTEN):
        rows = torch.cat([rows, model(input_ids=rows, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return rows


def main() -> None:
    kept, setting, made = Kept.of(CLAIM.id), CLAIM.setting, decoder()
    texts = (setting.method, *setting.baselines, *setting.beside)
    found = {
        text: [kept(f"{text}, seed {seed}", functools.partial(fitted, text, seed, str(made.folder))) for seed in setting.seeds]
        for text in texts
    }
    rows = [{"option": text, **{name: [each[name] for each in found[text]] for name in found[text][0]}} for text in texts]
    gains = [b["divergence"] - a["divergence"] for a, b in zip(found[setting.method], found[setting.baselines[0]])]
    mean = lambda text, name: statistics.mean(each[name] for each in found[text])
    near = [text for text in texts if mean(text, "rise of log perplexity") < NEAR]
    names = {text: name for name, text in FORMATS.items()}
    figures = {
        "nearest to the original": names[min(texts, key=lambda text: mean(text, "divergence"))],
        "fewest bytes": names[min(texts, key=lambda text: mean(text, "bytes"))],
        "fewest bytes of those within one per cent of the original's perplexity": names[min(near, key=lambda text: mean(text, "bytes"))],
    }
    lossless = all(each["rise of log perplexity"] < NEAR for each in found[setting.method])
    data = "a Llama of a million weights, trained on sources of Python's library, and windows of the shipped text"
    show(result(CLAIM, kept, rows, gains, figures, {"FP8 costs less than one per cent of perplexity": lossless}, data))


if __name__ == "__main__":
    main()
