"""Whether what was merged is a model: reloaded by Transformers, finite, and not far worse than what it was made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import DataError, ModelError, SettingError
from modicum.core.finite import finite
from modicum.data.forward import require_tokens
from modicum.data.splits import Batch, from_text
from modicum.export.loaded import loaded
from modicum.merging.sources import Held, Source, Stored
from modicum.models.open import model_class, open_model, read_config
from modicum.numerics.interval import interval
from modicum.train.loop import evaluate, single

WORST = 1.5  # times the worst input's perplexity


@dataclass(frozen=True)
class Judged:
    """What a result is held against, and the text that is read."""

    base: Stored
    models: tuple[Source, ...]
    data: str | Path | None = None
    samples: int = 32
    tokens: int = 256
    seed: int = 0
    quality: bool = False


def verified(made: Path, judged: Judged, events: list[str]) -> dict[str, Any]:
    """What the receipt tells of it; what is wrong is an event. Raises ``ModelError`` where it cannot be loaded or holds NaN or Inf."""
    if not (made / "config.json").is_file():
        events.append("it has no config.json: nothing was reloaded")
        return {}
    cls = model_class(read_config(made), str(made))
    module = loaded(cls, made)
    for name, value in module.named_parameters():
        if not finite(value.detach()):
            raise ModelError(f"{name}: must be finite after reloading, holds NaN or Inf. Use smaller weights.")
    found: dict[str, Any] = {"verified": {"class": cls.__name__, "parameters": sum(value.numel() for value in module.parameters())}}
    rows = test_rows(judged.base.directory, cls.__name__, judged)
    if rows is None:
        events.append("it is no causal language model with a tokenizer: its perplexity was not measured")
        return found
    try:
        require_tokens(module, rows)
    except DataError as error:
        events.append(f"its perplexity was not measured: {str(error).rstrip('.')}")
        return found
    told = {"result": losses(module, rows)}
    del module
    for label, source in (("base", judged.base), *((f"model {place + 1}", each) for place, each in enumerate(judged.models))):
        told[label] = losses(_module(source, judged.base), rows)
    perplexities = {label: math.exp(min(700.0, sum(each) / len(each))) for label, each in told.items()}
    worst = max(value for label, value in perplexities.items() if label != "result")
    found["verified"] |= {"perplexity": perplexities, "sequences": len(rows)}
    if not perplexities["result"] <= WORST * worst:
        events.append(
            f"its perplexity on held-out text is {perplexities['result']:.4g}, more than {WORST:g} times the worst input's, {worst:.4g}"
        )
    if judged.quality:
        found["quality"] = [_row(label, each, told["result"]) for label, each in told.items()]
    return found


def test_rows(directory: Path, cls: str, judged: Judged, part: str = "test") -> Sequence[Batch] | None:
    """Held-out sequences of a part; None where the model reads no text, or has no tokenizer."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if cls not in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return None
    try:
        tokenizer = open_model(directory).tokenizer
    except ModelError:
        return None
    wanted = judged.samples if part == "test" else 2 * judged.samples
    splits = from_text(judged.data, tokenizer, samples=1, tokens=judged.tokens, seed=judged.seed, test_samples=wanted)
    return single(getattr(splits, part))


def losses(module: nn.Module, rows: Sequence[Batch]) -> list[float]:
    """Loss per token of every sequence."""
    return [loss / max(1, count) for loss, count in evaluate(module, rows)]


def _module(source: Source, base: Stored) -> nn.Module:
    folder = source.directory if isinstance(source, Stored) else base.directory
    module = loaded(model_class(read_config(folder), str(folder)), folder)
    if isinstance(source, Stored):
        return module
    fill(module, source, base)
    return module


def by_loss(judged: Judged) -> Callable[[Mapping[str, torch.Tensor]], float]:
    """Minus the mean loss on validation text of a model with such tensors.

    Raises ``SettingError`` where it reads no text, ``DataError`` where the text has tokens that it does not know.
    """
    cls = model_class(read_config(judged.base.directory), judged.base.label)
    rows = test_rows(judged.base.directory, cls.__name__, judged, "validation")
    if rows is None:
        raise SettingError(
            f"{judged.base.label}: must be a causal language model with a tokenizer to be evaluated, is not. Pass score= in Python."
        )
    module = loaded(cls, judged.base.directory)
    require_tokens(module, rows)

    def score(tensors: Mapping[str, torch.Tensor]) -> float:
        fill(module, Held(tensors, "the merge"), judged.base)
        found = losses(module, rows)
        return -sum(found) / len(found)

    return score


def fill(module: nn.Module, source: Source, base: Stored) -> None:
    """Put a source's values in the place of those of a module that was loaded from the base."""
    model = open_model(base.directory)
    reading = _Reading(model.weights.shards, source)  # type: ignore[attr-defined]
    model.weights.shards = reading  # type: ignore[attr-defined]
    for name in model.weights.names:
        value = model.weights.read(name)
        parameter = module.get_parameter(name)
        parameter.data = value.to(parameter.dtype).reshape(parameter.shape).clone()


class _Reading:
    """Shards whose values come from another source of the same names."""

    def __init__(self, shards: Any, source: Source):
        self._shards, self._source = shards, source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shards, name)

    def read(self, name: str) -> torch.Tensor:
        shape = self._source.entry(name)[1]
        return self._source.read(name, 0, math.prod(shape)).reshape(shape)


def _row(label: str, mine: Sequence[float], result: Sequence[float]) -> dict[str, Any]:
    mean, low, high = interval(list(mine))
    row: dict[str, Any] = {"model": label, "loss": mean, "interval": [low, high]}
    if label != "result":
        change, low, high = interval([one - other for one, other in zip(result, mine)])
        row |= {"result_minus_this": change, "difference_interval": [low, high]}
    return row
