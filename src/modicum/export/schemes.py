"""compressed-tensors' side of a form: its tensors on disk, its scheme, and the targets that name which modules have it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from modicum.core.errors import ModelError
from modicum.core.method import Method
from modicum.core.unit import Unit
from modicum.export import bitsandbytes
from modicum.export._family import Entries
from modicum.forms import Activated, Blockwise, Cut, Float8, Form, Integer, Minifloat
from modicum.forms.minifloat import LAYOUTS
from modicum.forms.packing import pack
from modicum.quantize._family import Quantizer
from modicum.quantize.activations import Activations
from modicum.quantize.bitsandbytes import Bitsandbytes
from modicum.quantize.float4 import Float4 as Float4Method
from modicum.quantize.float6 import Float6 as Float6Method
from modicum.quantize.float8 import Float8 as Float8Method
from modicum.quantize.zeroquant_fp import ZeroquantFp

_FORMATS = {
    "integer": "pack-quantized", "int8": "int-quantized", "float8": "float-quantized", "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized", "mxfp6": "mxfp6-pack-quantized",
}  # fmt: skip
# Of scales their strategy and dtype; readers have no others.
_MINIFLOATS = {
    "nvfp4": ("tensor_group", "torch.float8_e4m3fn"), "mxfp4": ("group", "torch.uint8"), "mxfp6_e2m3": ("group", "torch.uint8"),
}  # fmt: skip
# What inputs are called in.
_TYPES = {"int8": "int", "fp8": "float", "int4": "int", "mxfp4": "float", "nvfp4": "float"}
_WORDS = {4: "four", 6: "six"}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def inside(form: Form) -> Form:
    """A form without the rows and columns that a cut took: the module is as narrow."""
    return form.inner if isinstance(form, Cut) else form


def entries(form: Form, rows: int) -> Entries:
    """Tensors that ``rows`` rows of a form are stored as."""
    found: Entries
    if isinstance(form, Activated):
        found = entries(form.inner, rows)
        if isinstance(form.inner, Integer) and form.inner.bits == 8:  # runtimes that multiply codes read them one to a byte
            found = {"weight": (torch.int8, (rows, form.shape[1])), "weight_scale": found["weight_scale"]}
        return found if form.inputs.scale is None else found | {_input(form): (form.inputs.scale.dtype, (1,))}
    if isinstance(form, Integer):
        columns = form.shape[1]
        found = {
            "weight_packed": (torch.int32, (rows, -(-columns * form.bits // 32))),
            "weight_scale": (form.scale.dtype, (rows, form.scale.shape[1])),
            "weight_shape": (torch.int64, (2,)),
        }
        if form.zero is not None:
            found["weight_zero_point"] = (torch.int32, (-(-rows * form.bits // 32), form.scale.shape[1]))
        return found
    if isinstance(form, Minifloat):
        packed: Entries = {
            "weight_packed": (torch.uint8, (rows, form.shape[1] * form.bits // 8)),
            "weight_scale": (form.scale.dtype, (rows, form.scale.shape[1])),
        }
        return packed | ({"weight_global_scale": (torch.float32, (1,))} if form.layout.name == "nvfp4" else {})
    if isinstance(form, Blockwise):
        return bitsandbytes.entries(form)
    if isinstance(form, Float8):
        return {"weight": (torch.float8_e4m3fn, (rows, form.shape[1])), "weight_scale": (form.scale.dtype, (rows, 1))}
    return {"weight": (form.dtype, (rows, form.shape[1]))}


def tensors(form: Form, rows: list[int] | None) -> dict[str, torch.Tensor]:
    """Those tensors themselves, for some rows or all."""
    pick = (lambda tensor: tensor) if rows is None else (lambda tensor: tensor[rows])
    if isinstance(form, Activated):
        inner, scale = form.inner, form.inputs.scale
        if isinstance(inner, Integer) and inner.bits == 8:
            found = {"weight": _centred(pick(inner.codes), inner.bits).contiguous(), "weight_scale": pick(inner.scale).contiguous()}
        else:
            found = tensors(inner, rows)
        return found if scale is None else found | {_input(form): scale}
    if isinstance(form, Integer):
        codes = pick(form.codes)
        found = {
            "weight_packed": _words(codes, form.bits),
            "weight_scale": pick(form.scale).contiguous(),
            "weight_shape": torch.tensor(codes.shape),
        }
        if form.zero is not None:
            found["weight_zero_point"] = _words(pick(form.zero).T.contiguous(), form.bits).T.contiguous()
        return found
    if isinstance(form, Minifloat):
        packed = {"weight_packed": pack(pick(form.codes), form.bits), "weight_scale": pick(form.scale).contiguous()}
        return packed | ({"weight_global_scale": torch.tensor([2.0**form.shift])} if form.layout.name == "nvfp4" else {})
    if isinstance(form, Blockwise):
        return bitsandbytes.tensors(form)
    if isinstance(form, Float8):
        return {"weight": pick(form.numbers).contiguous(), "weight_scale": pick(form.scale).contiguous()}
    return {"weight": pick(form.dense()).contiguous()}


def _input(form: Activated) -> str:
    """What the one number about a form's inputs is called: what they are divided by, or what their scales are told over."""
    return "input_global_scale" if form.inputs.format == "nvfp4" else "input_scale"


def _words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (rows, columns) as int32 words (rows, ⌈columns · bits / 32⌉), each row's bits one after the other."""
    packed = pack(codes, bits)
    filled = torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4))
    return filled.flatten().view(torch.int32).view(len(filled), -1)  # one row may have any stride


@cache
def reads_widths(bits: int) -> bool:
    """Whether the compressed-tensors that is installed reads packed codes of so many bits; before 0.18 each word holds whole codes alone."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return 32 % bits == 0 or pack_to_int32(torch.zeros(1, 32, dtype=torch.int8), bits).shape[1] == bits


@cache
def reads_six_bits() -> bool:
    """Whether the compressed-tensors that is installed has floats of six bits."""
    from compressed_tensors.config import CompressionFormat

    return "mxfp6_pack_quantized" in CompressionFormat.__members__


def _centred(codes: torch.Tensor, bits: int) -> torch.Tensor:
    return (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def multiplied(weights: Method, inputs: Activations) -> bool:
    """Whether runtimes multiply codes of these kinds: whole numbers or floats of as many bits; those of eight under one scale per row."""
    if inputs.format == "fp8":
        return isinstance(weights, Float8Method)
    if inputs.format in ("mxfp4", "nvfp4"):
        return isinstance(weights, Float4Method | ZeroquantFp) and weights.format == inputs.format
    bits = 4 if inputs.format == "int4" else 8
    return isinstance(weights, Quantizer) and weights.bits == bits and (weights.group == 0 if bits == 8 else inputs.scale == "dynamic")


def scheme(form: Form) -> str:
    """A form's scheme as text: forms with the same text can stand in one group."""
    if isinstance(form, Activated):
        whole, format = form.inputs.scale is None, form.inputs.format
        inputs = {"num_bits": int(format[-1]), "type": _TYPES[format], "symmetric": True, "strategy": "token" if whole else "tensor"}
        if format in _MINIFLOATS:
            strategy, stored = _MINIFLOATS[format]
            inputs |= {"strategy": strategy, "group_size": LAYOUTS[format].group, "scale_dtype": stored}
        found = "local" if format == "nvfp4" else whole
        return json.dumps(json.loads(scheme(form.inner)) | {"inputs": inputs | {"dynamic": found}})
    if isinstance(form, Integer):
        group = {"strategy": "group", "group_size": form.group} if form.group else {"strategy": "channel"}
        return json.dumps({"num_bits": form.bits, "type": "int", "symmetric": form.zero is None, **group})
    if isinstance(form, Minifloat) and form.layout.name in _MINIFLOATS:
        strategy, stored = _MINIFLOATS[form.layout.name]
        group = {"strategy": strategy, "group_size": form.layout.group, "scale_dtype": stored}
        return json.dumps({"num_bits": form.bits, "type": "float", "symmetric": True, **group})
    if isinstance(form, Blockwise):
        return json.dumps({"num_bits": 4, "type": form.type, "group_size": form.block, "double": not isinstance(form.scale, torch.Tensor)})
    if isinstance(form, Float8):
        return json.dumps({"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"})
    raise ModelError(f"a {form.kind} form cannot be stored by compressed-tensors. Pass --target modicum.")


def unread(step: Method, units: Sequence[Unit]) -> str:
    """Why readers do not hold what ``step`` makes of ``units``; empty where they do.

    They bring four- and six-bit floats back in bfloat16 whatever the model's own dtype, so that no other goes on with them.
    """
    narrow = lambda group: next((f"group {group} does not divide rows of {u.shape[1]}" for u in units if group and u.shape[1] % group), "")
    if isinstance(step, Quantizer):
        if step.group < 0:
            return "whose readers take one scale for each row or group of columns, and group=-1 has one for all"
        if step.scales < 16:
            return f"whose readers take scales of 16 bits, and scales={step.scales} has fewer"
        return narrow(step.group)
    if isinstance(step, Float4Method | Float6Method | ZeroquantFp):
        if step.format not in _MINIFLOATS:
            return "whose readers have six-bit floats in E2M3 alone (format=mxfp6_e2m3)"
        if LAYOUTS[step.format].bits == 6 and not reads_six_bits():
            return "whose reader, the compressed-tensors that is installed, has no six-bit floats"
        other = next((str(unit.dtype).removeprefix("torch.") for unit in units if unit.dtype != torch.bfloat16), "")
        if other:
            return f"whose readers bring {_WORDS[LAYOUTS[step.format].bits]}-bit floats back in bfloat16 alone, and its weights are {other}"
        return narrow(LAYOUTS[step.format].group)
    if isinstance(step, Bitsandbytes):
        return bitsandbytes.unread(step, units)
    return "" if isinstance(step, Float8Method) else f"whose readers have no format for {step.key().rpartition('/')[2]}"


class Targets:
    """Patterns that name modules for every reader: with the head or without it, and for the first one that fits as for the best.

    ``names`` are all modules there are, as readers call them, ``prefix`` the one that names lose where the model is loaded without its head.
    """

    def __init__(self, names: Collection[str], prefix: str):
        self.prefix = prefix
        tails = [self._tail(name) for name in names]
        self._unique = {name: len([1 for tail in tails if tail == name or tail.endswith(f".{name}")]) == 1 for name in set(tails)}

    def _tail(self, name: str) -> str:
        return name.removeprefix(f"{self.prefix}.") if self.prefix else name

    def modules(self, names: Collection[str]) -> list[str]:
        """Patterns that match these modules and no others: names that differ in one number share one."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name in sorted(names):
            first = _NUMBER.search(name)
            found[(name, "") if first is None else (name[: first.start()], name[first.end() :])].append("" if first is None else first[0])
        return sorted(
            self._pattern(start, sorted(numbers, key=lambda text: int(text or 0)), end) for (start, end), numbers in found.items()
        )

    def _pattern(self, start: str, numbers: Sequence[str], end: str) -> str:
        tail, under = self._tail(start), bool(self.prefix) and start.startswith(f"{self.prefix}.")
        # A prefix that nobody foresaw, of a model that has this one as a part, may stand before it where no other module ends alike.
        free = under and all(self._unique.get(f"{tail}{number}{end}", False) for number in numbers)
        before = r"(?:.*\.)?" if free else rf"(?:{re.escape(self.prefix)}\.)?" if under else ""
        middle = f"(?:{'|'.join(numbers)})" if len(numbers) > 1 else numbers[0]
        # Readers take a pattern that says "experts" for the routed experts'.
        return f"re:{before}{_escaped(tail)}{middle}{_escaped(end)}$".replace("experts", "expert[s]")


def expert_targets(names: Collection[str]) -> list[str]:
    """Patterns for the routed experts' modules, the same for all layers and experts."""
    return sorted({f"re:.*\\.{_escaped(_NUMBER.sub('#', _from_experts(name))).replace('#', r'[0-9]+')}$" for name in names})


def _kind(arguments: Mapping[str, Any]) -> str:
    if arguments["type"] == "int":
        return "int8" if "inputs" in arguments and arguments["num_bits"] == 8 else "integer"
    bits = arguments["num_bits"]
    return {8: "float8", 6: "mxfp6"}.get(bits) or {"tensor_group": "nvfp4", "group": "mxfp4"}[arguments["strategy"]]


def _escaped(text: str) -> str:
    return text.replace(".", r"\.")


def _from_experts(name: str) -> str:
    """The part of an expert's name that all layers share: from its list on."""
    parts = name.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdecimal()), default=0)
    return ".".join(parts[max(last - 1, 0) :])


def quantization(
    experts: Mapping[str, Sequence[str]], modules: Mapping[str, Sequence[str]], targets: Targets, ignore: Sequence[str], cache: bool = False
) -> Any:
    """The ``quantization_config``, for names by their scheme, and for keys and values that are kept (``cache``); None where nothing is quantized.

    The experts come first: that is where a reader that looks for their scheme finds it.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    found = [(text, expert_targets(names)) for text, names in sorted(experts.items())]
    found += [(text, targets.modules(names)) for text, names in sorted(modules.items())]
    if not found and not cache:
        return None
    schemes = {}
    for index, (text, patterns) in enumerate(found):
        arguments = json.loads(text)
        kind = _FORMATS[_kind(arguments)]
        inputs = arguments.pop("inputs", None)
        schemes[f"group_{index}"] = QuantizationScheme(
            targets=patterns, weights=QuantizationArgs(**arguments), format=kind,
            input_activations=None if inputs is None else QuantizationArgs(**inputs),
        )  # fmt: skip
    formats = {str(one.format) for one in schemes.values()}
    config = QuantizationConfig(
        config_groups=schemes, format=formats.pop() if len(formats) == 1 else "mixed-precision" if formats else "dense",
        quantization_status="compressed", ignore=list(ignore),
        kv_cache_scheme=QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="tensor", dynamic=False) if cache else None,
    )  # fmt: skip
    return json.loads(config.model_dump_json()) | {"quant_method": "compressed-tensors"}
