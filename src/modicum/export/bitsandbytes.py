"""bitsandbytes' side of a form: its tensors on disk, what its readers take, and the config that has Transformers call it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from modicum.core.errors import ModelError
from modicum.core.option import Option
from modicum.core.unit import Unit
from modicum.export._family import Entries
from modicum.forms import Blockwise, Form
from modicum.forms.blockwise import LEVELS, OUTER, Doubled, steps
from modicum.quantize.bitsandbytes import Bitsandbytes

# Packages that Transformers reads such files with.
_READERS = ("bitsandbytes", "accelerate")
# Rows that its kernel for processors takes together.
_ROWS = 32
# Characters of a float32 in JSON at the most: what stands for it takes as many bytes before it is known.
_DIGITS = 24


def entries(form: Blockwise) -> Entries:
    """Tensors that a form is stored as, by what follows the module's name."""
    said, count = _state(form), form.shape[0] * form.shape[1]
    scales = torch.uint8 if isinstance(form.scale, Doubled) else torch.float32
    found: Entries = {
        "weight": (torch.uint8, (count // 2, 1)), "weight.absmax": (scales, (count // form.block,)),
        "weight.quant_map": (torch.float32, (len(LEVELS[form.type]),)),
        f"weight.quant_state.bitsandbytes__{form.type}": (torch.uint8, (len(said),)),
    }  # fmt: skip
    if isinstance(form.scale, Doubled):
        found["weight.nested_absmax"] = (torch.float32, (math.ceil(count // form.block / OUTER),))
        found["weight.nested_quant_map"] = (torch.float32, (len(steps()),))
    return found


def tensors(form: Blockwise) -> dict[str, torch.Tensor]:
    """Those tensors themselves."""
    pairs, scale = form.codes.reshape(-1, 2), form.scale
    found = {
        "weight": pairs[:, :1] << 4 | pairs[:, 1:], "weight.quant_map": LEVELS[form.type],
        "weight.absmax": (scale.codes if isinstance(scale, Doubled) else scale).flatten(),
        f"weight.quant_state.bitsandbytes__{form.type}": torch.frombuffer(bytearray(_state(form)), dtype=torch.uint8),
    }  # fmt: skip
    return found | {"weight.nested_absmax": scale.outer, "weight.nested_quant_map": steps()} if isinstance(scale, Doubled) else found


def _state(form: Blockwise) -> bytes:
    """What stands beside the tensors, as text of a length that no number changes."""
    said = {"quant_type": form.type, "blocksize": form.block, "dtype": str(form.dtype).removeprefix("torch."), "shape": list(form.shape)}
    if not isinstance(form.scale, Doubled):
        return json.dumps(said).encode()
    told = json.dumps(said | {"nested_blocksize": OUTER, "nested_dtype": "float32", "nested_offset": 0})
    offset = json.dumps(float(form.scale.offset))
    return (told[:-2] + offset + "}" + " " * (_DIGITS - len(offset))).encode()


def unread(step: Bitsandbytes, units: Sequence[Unit]) -> str:
    """Why readers do not hold what ``step`` makes of ``units``; empty where they do."""
    if missing := [name for name in _READERS if find_spec(name) is None]:
        both = " and ".join(missing)
        return f"whose reader needs {both}, not installed here (pip install 'modicum[bitsandbytes]')"
    for unit in units:
        if unit.kind == "expert":
            return "whose reader leaves experts that are stacked as they are"
        if unit.shape[1] % step.block:
            return f"whose reader takes blocks that fill a row: block {step.block} does not divide rows of {unit.shape[1]}"
        if unit.shape[0] % _ROWS:
            return f"whose kernel for processors takes multiples of {_ROWS} rows, and there are {unit.shape[0]}"
    return ""


def versions() -> str:
    """Which readers are installed, for people."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in _READERS)


def mixture(options: Iterable[Option]) -> str:
    """Why these options cannot stand in one file together, of which some are bitsandbytes'; empty where they can."""
    firsts = [option.steps[0] for option in options if option.steps and type(option.steps[0]).family() == "quantize"]
    own = list(dict.fromkeys(step for step in firsts if isinstance(step, Bitsandbytes)))
    other = next((step for step in firsts if not isinstance(step, Bitsandbytes)), None)
    if own and other is not None:
        return f"{own[0]} and {other}: a file that bitsandbytes reads holds nothing else that is quantized"
    unlike = next((step for step in own if (step.levels, step.double) != (own[0].levels, own[0].double)), None)
    return f"{own[0]} and {unlike}: a file that bitsandbytes reads has one type, double or not, for all layers" if unlike else ""


def quantization(
    forms: Mapping[str, Form], modules: Mapping[str, nn.Module], treated: Collection[str], dtype: torch.dtype
) -> dict[str, Any]:
    """The ``quantization_config`` for forms of which some are blockwise; ``modules`` by the name on disk, of which those ``treated`` have one.

    Raises ``ModelError`` where forms do not go together.
    """
    own = [form for form in forms.values() if isinstance(form, Blockwise)]
    kinds = {(form.type, isinstance(form.scale, Doubled)) for form in own}
    if len(kinds) > 1:
        raise ModelError(f"a file that bitsandbytes reads must have one type for all layers, has {sorted(kinds)}. Pass --target modicum.")
    ((type, double),) = kinds
    # Its loader makes layers of its own of all linear ones but those that are named; embeddings and experts are none.
    linear = (name for name, module in modules.items() if isinstance(module, nn.Linear) or module.__class__.__name__ == "Conv1D")
    return {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": type,
        "bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."), "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": sorted(set(linear) - set(treated)), "llm_int8_threshold": 6.0, "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
    }  # fmt: skip
