"""S307, super weights: the weight of the largest spike between a down projection's input and output, zeroed, against others zeroed.

One forward of the demo finds for each layer the channel of the largest input and that of the largest output; the layer whose two spikes stand
out most, relative to the layer's median, gives the weight. Beside it the largest weight of the same matrix is zeroed, and eight drawn by chance.
For rounding, all linear layers of the blocks take four bits with one scale each: over the whole range; clipped to least squared error; and clipped
with one weight of each down projection put back, that of the spikes, or the largest. Seeds draw the windows.
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
from scenes.domains import windows
from scenes.training import next_token

CLAIM = Claim(
    id="S307",
    system="Super Weight",
    claim="One forward pass locates spikes at a down_proj input and output to get super-weight coordinates; zeroing that one scalar explodes "
    "perplexity, and keeping it while clipping other outliers improves large-block round-to-nearest quantization.",
    metric="rise of log perplexity where the weight of the largest spike is zeroed minus that where the largest weight of its matrix is",
    margin=2.0,
    setting=Setting(method="weight of the largest spike", baselines=("largest weight of its matrix",), tokens=128, test_samples=16),
)
DRAWN, EXPLODES, BITS = 8, 10.0, 4


def seen(seed: int) -> dict[str, Any]:
    """Log perplexities of one seed's windows."""
    from transformers import AutoModelForCausalLM

    from modicum.models.located import DEMO

    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    rows = windows("sources", "test")[seed::3][: CLAIM.setting.test_samples]
    measure = functools.partial(loss, model, rows)
    whole, (layer, spikes) = measure(), located(model, windows("sources", "validation")[seed][None])
    weight, (row, column) = layer.weight, spikes[layer]
    chance = torch.Generator().manual_seed(seed)
    drawn = [tuple(int(torch.randint(size, (), generator=chance)) for size in weight.shape) for _ in range(DRAWN)]
    found = {
        "weight of the largest spike": without(layer, (row, column), measure) - whole,
        "largest weight of its matrix": without(layer, largest(weight), measure) - whole,
        "weights by chance": statistics.mean(without(layer, place, measure) - whole for place in drawn),
    }
    blocks = [each for name, each in model.named_modules() if isinstance(each, nn.Linear) and ".layers." in name]
    for name, clip, kept in (
        ("rounded over the whole range", False, {}), ("rounded, clipped", True, {}), ("rounded, clipped, spikes put back", True, spikes),
        ("rounded, clipped, largest put back", True, {each: largest(each.weight) for each in spikes}),
    ):  # fmt: skip
        found[name] = rounded(blocks, clip, kept, measure) - whole
    return {"rises": found, "whole": whole}


@torch.no_grad()
def loss(model: nn.Module, rows: torch.Tensor) -> float:
    """Log perplexity."""
    return statistics.mean(float(next_token(model, part)) for part in rows.split(8))


@torch.no_grad()
def located(model: nn.Module, ids: torch.Tensor) -> tuple[nn.Linear, dict[nn.Linear, tuple[int, int]]]:
    """The down projection whose spikes stand out most, and of each the row and the column of its spikes."""
    places: dict[nn.Linear, tuple[int, int]] = {}
    outstanding: dict[nn.Linear, float] = {}

    def look(layer: nn.Linear, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ends = [value.abs().flatten(0, -2).amax(0) for value in (output, args[0])]
        places[layer] = (int(ends[0].argmax()), int(ends[1].argmax()))
        outstanding[layer] = math.prod(float(end.max() / end.median()) for end in ends)

    hooks = [each.register_forward_hook(look) for name, each in model.named_modules() if name.endswith("down_proj")]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return max(outstanding, key=lambda layer: outstanding[layer]), places


def largest(weight: torch.Tensor) -> tuple[int, int]:
    """Row and column of the largest magnitude."""
    place = int(weight.abs().argmax())
    return place // weight.shape[1], place % weight.shape[1]


@torch.no_grad()
def without(layer: nn.Linear, place: tuple[int, ...], measure: Any) -> float:
    """Log perplexity where one weight is zero."""
    before = layer.weight[place].clone()
    layer.weight[place] = 0
    found = measure()
    layer.weight[place] = before
    return found


@torch.no_grad()
def rounded(layers: list[nn.Linear], clip: bool, kept: dict[nn.Linear, tuple[int, int]], measure: Any) -> float:
    """Log perplexity where all layers are rounded to the nearest of few levels, with one scale each."""
    before = {layer: layer.weight.clone() for layer in layers}
    for layer in layers:
        top = float(layer.weight.abs().max())
        tried = [coded(layer.weight, top * share) for share in (torch.linspace(0.2, 1.0, 17).tolist() if clip else [1.0])]
        value = min(tried, key=lambda one, layer=layer: float((one - layer.weight).square().sum()))
        if layer in kept:
            value[kept[layer]] = layer.weight[kept[layer]]
        layer.weight.copy_(value)
    found = measure()
    for layer, weight in before.items():
        layer.weight.copy_(weight)
    return found


def coded(weight: torch.Tensor, top: float) -> torch.Tensor:
    """Symmetric levels up to ``top``."""
    step = top / (2 ** (BITS - 1) - 1)
    return (weight / step).round().clamp(-(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1) * step


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(seen, seed)) for seed in setting.seeds]
    rises = {name: [each["rises"][name] for each in found] for name in found[0]["rises"]}
    rows = [{"option": name, "rise of log perplexity": values} for name, values in rises.items()]
    mine, other = (rises[name] for name in (setting.method, *setting.baselines))
    figures = {"log perplexity of the whole model": [each["whole"] for each in found]}
    back, clipped = rises["rounded, clipped, spikes put back"], rises["rounded, clipped"]
    conditions = {
        f"perplexity is {EXPLODES:g} times as high without it": all(value > math.log(EXPLODES) for value in mine),
        "clipped rounding is better where the spikes' weights are put back": all(a < b for a, b in zip(back, clipped)),
    }
    show(result(CLAIM, kept, rows, [a - b for a, b in zip(mine, other)], figures, conditions, "the demo, windows of its test text"))


if __name__ == "__main__":
    main()
