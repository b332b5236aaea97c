"""S032, decoding under quantization: how much worse a token that a four-bit form draws is than one of the original's, as the temperature rises.

The shipped demo, and a Llama of a million weights: the linears of their blocks in eight bits, a scale a row, and in NF4, FP4 and NF4 with scales of
eight bits, each to the nearest as bitsandbytes stores it. At every position of the test text a token drawn from a format is on average so much less
probable to the original than one that the original draws: that is a sum over the vocabulary, without chance. Beside it stand the divergence at each
temperature; texts of 32 tokens after 24 prompts, at temperatures from 0.2 to 1.1, by top-k of 50 and of all, judged by the original's log perplexity
less that of its own text from the same random numbers; bytes; and where bitsandbytes is installed seconds of a processor and memory of what
Transformers loads: the demo as it is, in eight bits (its own loader quantizes), and our files of four bits.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import Claim, Setting, result, show
from kept import Kept
from scenes.decoder import decoder
from scenes.domains import opened, windows

FORMATS = {
    "nf4": "bitsandbytes rounding=nearest", "int8": "nearest bits=8 group=0 symmetric=true", "fp4": "bitsandbytes levels=fp4 rounding=nearest",
    "nf4, double": "bitsandbytes double=true rounding=nearest", "bf16": "",
}  # fmt: skip
CLAIM = Claim(
    id="S032",
    system="PTQ x decoding-hyperparameter analysis",
    claim="Load a small LM in bf16, int8, nf4, fp4 and double-quant, sweep temperature, top-k and max tokens; report quality, speed and memory, "
    "exposing the extra temperature sensitivity of the 4-bit variants.",
    metric="rise from temperature 0.5 to 0.8 of what a token drawn by a format costs above one drawn by the original, by the original's log "
    "probability and at every position of a text, of NF4 minus that of eight-bit integers, mean of two models",
    margin=2.0,
    setting=Setting(
        method="nf4",
        baselines=("int8",),
        beside=("fp4", "nf4, double", "bf16"),
        seeds=(0, 1, 2),
        samples=0,
        tokens=16,
        test_samples=24,
    ),
)
TEMPERATURES, TOPS, WRITTEN, FIRST = (0.2, 0.5, 0.8, 1.1), (50, 0), 32, 8
SETTINGS = [(temperature, top) for temperature in TEMPERATURES for top in TOPS]
LOW, HIGH = 0.5, 0.8
# Windows at whose positions tokens are weighed; tokens written, and how often, for a time.
JUDGED, TIMED, TIMES = 40, 24, 3
MODELS = ("demo", "decoder")


@functools.cache
def source(name: str) -> str:
    """The folder of a model."""
    from modicum.models.located import DEMO

    return str(DEMO if name == "demo" else decoder().folder)


@functools.cache
def original(name: str) -> nn.Module:
    """It in float32."""
    return opened(source(name))


@functools.cache
def made(name: str, format: str) -> tuple[nn.Module, int]:
    """The model in a format, computed in float32 (in its own dtype where nothing is rounded), and the bytes of its blocks' linears."""
    from modicum.core.option import Option
    from modicum.core.unit import Site, Stats, Unit
    from modicum.forms import Dense

    module, size = copy.deepcopy(original(name)), 0
    for key, part in module.named_modules():
        if isinstance(part, nn.Linear) and key != "lm_head":
            weight = part.weight.data.bfloat16()
            unit = Unit(key, f"{key}.weight", key, "linear", tuple(weight.shape), tuple(weight.shape), weight.dtype)
            form = Dense(weight)
            if FORMATS[format]:
                form = Option.parse(FORMATS[format]).apply(Site(key, "unit", (unit,)), {key: Stats()}, {key: form}).forms[key]
            part.weight.data, size = form.dense().float(), size + form.nbytes
    return module if FORMATS[format] else module.bfloat16(), size


def rows_of(seed: int) -> torch.Tensor:
    """Windows of the test text that are a seed's."""
    return windows("sources", "test")[seed :: len(CLAIM.setting.seeds)]


def texts(name: str, seed: int) -> list[list[int]]:
    """What the original writes, of each temperature and top-k in turn."""
    return written(original(name), seed).tolist()


def seen(name: str, format: str, seed: int, own: list[list[int]]) -> dict[str, Any]:
    """What a format's tokens cost and how far it diverges by temperature; its texts by top-k and how many tokens are written; bytes."""
    model, size = made(name, format)
    found: dict[str, Any] = {"bytes": size} | weighed(original(name), model, rows_of(seed)[:JUDGED])
    above = judged(original(name), written(model, seed)) - judged(original(name), torch.tensor(own))
    for (temperature, top), each in zip(SETTINGS, above.chunk(len(SETTINGS))):
        for count in (FIRST, WRITTEN):
            found[f"temperature {temperature:g}, top-k {top or 'all'}, {count} tokens"] = float(each[:, :count].mean())
    return found


@torch.no_grad()
def written(model: nn.Module, seed: int) -> torch.Tensor:
    """Prompts with what a model writes after them, those of each temperature and top-k in turn, all drawn by the same numbers of the seed."""
    prompts = rows_of(seed)[: CLAIM.setting.test_samples, : CLAIM.setting.tokens]
    rows = given = prompts.repeat(len(SETTINGS), 1)
    chance, past = torch.Generator().manual_seed(seed), None
    for _ in range(WRITTEN):
        told = model(input_ids=given, past_key_values=past, use_cache=True, logits_to_keep=1)
        logits, past = told.logits[:, -1].float(), told.past_key_values
        gumbel = -(-torch.rand(len(prompts), logits.shape[-1], generator=chance).clamp_min(1e-20).log()).log()
        drawn = [draw(each, gumbel, *setting) for each, setting in zip(logits.chunk(len(SETTINGS)), SETTINGS)]
        given = torch.cat(drawn)[:, None]
        rows = torch.cat([rows, given], 1)
    return rows


def draw(logits: torch.Tensor, gumbel: torch.Tensor, temperature: float, top: int) -> torch.Tensor:
    """Tokens at a temperature, of the ``top`` most probable where that is not 0."""
    if top:
        logits = logits.masked_fill(logits < logits.topk(top).values[:, -1:], -torch.inf)
    return (logits / temperature + gumbel).argmax(-1)


@torch.no_grad()
def judged(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """The original's log perplexity of each token that was written (rows, written)."""
    logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    return -logits.gather(2, rows[:, 1:, None])[:, CLAIM.setting.tokens - 1 :, 0]


@torch.no_grad()
def weighed(model: nn.Module, other: nn.Module, rows: torch.Tensor) -> dict[str, float]:
    """By temperature, what a token that the other draws costs above one of the model's by the model's log probability, and KL per token."""
    cost, apart = dict.fromkeys(TEMPERATURES, 0.0), dict.fromkeys(TEMPERATURES, 0.0)
    for some in rows.split(8):
        mine, theirs = (each(input_ids=some, use_cache=False).logits.float() for each in (model, other))
        plain = mine.log_softmax(-1)
        for temperature in TEMPERATURES:
            p, q = (logits.div(temperature).log_softmax(-1) for logits in (mine, theirs))
            cost[temperature] -= float(((q.exp() - p.exp()) * plain).sum(-1).mean()) * len(some) / len(rows)
            apart[temperature] += float((p.exp() * (p - q)).sum(-1).mean()) * len(some) / len(rows)
    return {f"cost at temperature {each:g}": value for each, value in cost.items()} | {
        f"divergence at temperature {each:g}": value for each, value in apart.items()
    }


def timed() -> dict[str, Any]:
    """Milliseconds a token, one sequence, and megabytes of each format as Transformers has the demo; empty where its reader is not installed."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    import modicum

    if any(importlib.util.find_spec(name) is None for name in ("bitsandbytes", "accelerate")):
        return {}
    folder, load = source("demo"), AutoModelForCausalLM.from_pretrained
    models = {"bf16": load(folder), "int8": load(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))}
    with tempfile.TemporaryDirectory() as place:
        for format in ("nf4", "fp4", "nf4, double"):
            out = Path(place) / format
            modicum.fit(
                folder, method=FORMATS[format], target="transformers", samples=4, tokens=64, test_samples=2, allow_broken=True, out=out
            )
            models[format] = load(out)
    prompt = windows("sources", "test")[:1, : CLAIM.setting.tokens]
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(TIMES + 1):  # in turn, so that what else the machine does meets all; the first is none
        for name, model in models.items():
            spent[name].append(seconds(model.eval(), prompt))
    return {
        name: {"milliseconds": 1e3 * statistics.median(spent[name][1:]), "megabytes": model.get_memory_footprint() / 1e6}
        for name, model in models.items()
    }


@torch.no_grad()
def seconds(model: nn.Module, rows: torch.Tensor) -> float:
    """Seconds of a processor for one token written."""
    past, start = None, time.process_time()
    for _ in range(TIMED):
        made = model(input_ids=rows, past_key_values=past, use_cache=True)
        rows, past = made.logits[:, -1:].argmax(-1), made.past_key_values
    return (time.process_time() - start) / TIMED


def main() -> None:
    warnings.simplefilter("ignore")  # Transformers' of what a cache will be called
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    names = (setting.method, *setting.baselines, *setting.beside)
    own = {
        (model, seed): kept(f"{model}, texts, seed {seed}", functools.partial(texts, model, seed))
        for model in MODELS
        for seed in setting.seeds
    }
    found = {
        (model, name): [
            kept(f"{model}, {name}, seed {seed}", functools.partial(seen, model, name, seed, own[model, seed])) for seed in setting.seeds
        ]
        for model in MODELS
        for name in names
    }
    rows = [
        {"option": FORMATS[name] or "as it is, in bfloat16"}
        | {f"{model}, {key}": [each[key] for each in found[model, name]] for model in MODELS for key in found[model, name][0]}
        for name in names
    ]
    key = "cost at temperature {:g}"
    rise = {pair: [each[key.format(HIGH)] - each[key.format(LOW)] for each in values] for pair, values in found.items()}
    both = lambda name: [statistics.mean(values) for values in zip(*(rise[model, name] for model in MODELS))]
    gains = [a - b for a, b in zip(both(setting.method), both(setting.baselines[0]))]
    figures: dict[str, Any] = {f"{model}, {name}, rise from {LOW:g} to {HIGH:g}": values for (model, name), values in rise.items()}
    figures["smallest difference that would be clear"] = setting_margin(gains)
    speed = kept("speed", timed)
    figures |= {f"demo in Transformers, {name}": told for name, told in speed.items()} or {"speed": "bitsandbytes is not installed"}
    conditions = {"bitsandbytes runs here": bool(speed)}
    if speed:
        spent = {name: told["milliseconds"] for name, told in speed.items()}
        conditions |= {
            "eight bits take at least a fifth longer than bfloat16": spent["int8"] > 1.2 * spent["bf16"],
            "bfloat16 is fastest": min(spent, key=lambda name: spent[name]) == "bf16",
        }
    data = "the demo and a Llama of a million weights, trained on sources of Python's library, prompts of the test text"
    show(result(CLAIM, kept, rows, gains, figures, conditions, data))


def setting_margin(gains: list[float]) -> float:
    """What a mean difference must exceed to be clear."""
    return CLAIM.margin * statistics.stdev(gains) / len(gains) ** 0.5


if __name__ == "__main__":
    main()
