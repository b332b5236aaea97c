"""The values of a file's head: what llama.cpp must know of a model to compute what it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError, quoted
from modicum.export.gguf.architectures import Architecture, rope
from modicum.export.gguf.fields import Value
from modicum.export.gguf.vocabulary import Vocabulary
from modicum.models.model import Model

# Values that are numbers with digits behind the point whatever they look like.
_FRACTIONS = ("epsilon", "freq_base", "freq_base_swa", "softcapping", "scaling.factor", "attn_factor")
# How rotary positions are stretched, of what llama.cpp computes.
_TYPES = ("default", "linear", "yarn", "llama3", "longrope")
# Numbers that the format gives to files by the type that most of it has.
_FILES = {"f32": 0, "f16": 1, "bf16": 32}


def check(model: Model, row: Architecture, config: Any) -> None:
    """Raise ``ModelError`` for settings with which llama.cpp would compute something else."""
    for name, allowed in row.expects.items():
        if (value := getattr(config, name, allowed[0])) not in allowed:
            raise ModelError(
                f"{model.name}: target gguf: llama.cpp computes this architecture with {name} {quoted(repr(allowed[0]))} alone, "
                f"is {quoted(repr(value))}. Pass --target transformers or modicum."
            )
    for kind in ("full_attention", "sliding_attention"):
        if (said := rope(config, kind).get("rope_type", "default")) not in _TYPES:
            raise ModelError(
                f"{model.name}: target gguf: rotary positions must be stretched in a way that llama.cpp has, are as {quoted(said)} says. "
                "Pass --target transformers or modicum."
            )
    scalar, width = getattr(config, "query_pre_attn_scalar", None), getattr(config, "head_dim", None)
    if scalar is not None and scalar != width:
        raise ModelError(
            f"{model.name}: target gguf: llama.cpp scales attention by the width of a head, {width}, the model by {scalar}. "
            "Pass --target transformers or modicum."
        )


def window(row: Architecture, config: Any) -> int | None:
    """The window that some blocks see alone and llama.cpp does not narrow; None where there is none."""
    if row.windows:
        return None
    kinds = getattr(config, "layer_types", None)
    narrow = getattr(config, "use_sliding_window", True) if kinds is None else "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if narrow else None


def values(model: Model, row: Architecture, config: Any, words: Vocabulary, types: Iterable[tuple[str, int]]) -> dict[str, Value]:
    """All values of the head, in order; ``types`` of the tensors with their bytes."""
    sizes: Counter[str] = Counter()
    for type, nbytes in types:
        sizes[type] += nbytes
    found: dict[str, Value] = {"general.architecture": row.name, "general.type": "model", "general.name": Path(model.name).name or "model"}
    found |= {"general.file_type": _file_type(sizes), "general.quantization_version": 2}
    for key, source in row.keys.items():
        value: Any = getattr(config, source) if isinstance(source, str) else source(config)
        if value is not None:
            found[f"{row.name}.{key}"] = float(value) if key.endswith(_FRACTIONS) else _plain(value)
    if (seen := window(row, config)) is not None:
        found[f"{row.name}.context_length"] = min(seen, getattr(config, "max_position_embeddings", seen))
    return found | dict(words.values)


def _plain(value: Any) -> Value:
    """A number or a list of them as Python has it."""
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _file_type(sizes: Counter[str]) -> int:
    """The format's number for a file: most quantized files are told by the type that most of them has."""
    quantized = [(size, type) for type, size in sizes.items() if type not in _FILES]
    if not quantized:
        return _FILES[max(sizes, key=lambda type: sizes[type])]
    import gguf

    name = max(quantized)[1].upper()
    found = [each.value for each in gguf.LlamaFileType if each.name in (f"MOSTLY_{name}", f"MOSTLY_{name}_M", f"MOSTLY_{name}_S")]
    return min(found, default=int(gguf.LlamaFileType.GUESSED))


def factors(config: Any) -> dict[str, torch.Tensor]:
    """What each turn of rotary positions is slowed by, where that differs between them."""
    said = rope(config)
    if said.get("rope_type") == "llama3":
        return {"rope_freqs.weight": _slowed(config)}
    if said.get("rope_type") == "longrope":
        return {f"rope_factors_{name}.weight": torch.tensor(said[f"{name}_factor"], dtype=torch.float32) for name in ("long", "short")}
    return {}


def _slowed(config: Any) -> torch.Tensor:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    slow, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    base, pairs = rope(config)["rope_theta"], len(slow)
    return (base ** -(torch.arange(pairs, dtype=torch.float32) / pairs)) / slow.float()
