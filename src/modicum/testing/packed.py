"""Tiny checkpoints as other tools quantize them: each kind of layout written plainly, code by code, or by the library that owns it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from modicum.forms.blockwise import LEVELS, steps

Tensors = dict[str, torch.Tensor]
# What a weight is stored as, by the endings that take the place of ``weight`` (an empty one for itself), and what that stands for.
Made = tuple[Tensors, torch.Tensor]
_STACKS = ("experts.gate_up_proj", "experts.down_proj")
_LINEAR = ("_proj.weight", "lm_head.weight", "fc1.weight", "fc2.weight")


def checkpoint(directory: Path, how: Callable[[str, torch.Tensor], Made | None], said: Mapping[str, Any]) -> Tensors:
    """Quantize the linears of a saved checkpoint where it lies, where ``how`` makes something of one; every tensor's dense value by name."""
    path = directory / "model.safetensors"
    written, dense = {}, {}
    for name, value in load_file(path).items():
        made = how(name, value) if (name.endswith(_LINEAR) and value.ndim > 1) or name.endswith(_STACKS) else None
        if made is None:
            written[name] = dense[name] = value
            continue
        parts, dense[name] = made
        stem = name.removesuffix("weight") if name.endswith("weight") else f"{name}_"
        written |= {(stem + part if part else name): tensor.contiguous() for part, tensor in parts.items()}
    save_file(written, path, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": dict(said)}))
    return dense


def rounded(weight: torch.Tensor, bits: int, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes (rows, columns), and scales and zeros (rows, groups), of a weight whose columns are in ``groups``."""
    count = int(groups.max()) + 1
    zeros, scales = torch.zeros(len(weight), count, dtype=torch.int64), torch.ones(len(weight), count, dtype=torch.float16)
    for group in range(count):
        part = weight[:, groups == group].float()
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scales[:, group] = ((high - low) / (2**bits - 1)).clamp_min(1e-4).half()
        zeros[:, group] = (-low / scales[:, group].float()).round().clamp(0, 2**bits - 1)
    codes = (weight.float() / scales.float()[:, groups] + zeros[:, groups]).round().clamp(0, 2**bits - 1).to(torch.int64)
    return codes, scales, zeros


def words(codes: list[int], bits: int, planes: bool = False) -> list[int]:
    """Whole numbers in words of 32 bits, the lowest bit of the first one first; in ``planes``, for every 32 of them, field by field."""
    total = [0] * math.ceil(len(codes) * bits / 32)
    for place, code in enumerate(codes):
        at = place * bits
        for bit in range(bits):
            if planes:
                width, first = next((w, f) for w, f in _fields(bits) if f <= bit < f + w)
                at = place // 32 * 32 * bits + first * 32 + place % 32 * width - first
            total[(at + bit) // 32] |= (code >> bit & 1) << (at + bit) % 32
    return [word - 2**32 if word >= 2**31 else word for word in total]


def _fields(bits: int) -> list[tuple[int, int]]:
    return {3: [(2, 0), (1, 2)], 5: [(4, 0), (1, 4)], 6: [(4, 0), (2, 4)], 7: [(4, 0), (2, 4), (1, 6)]}.get(bits, [(bits, 0)])


def _packed(codes: torch.Tensor, bits: int, planes: bool = False) -> torch.Tensor:
    return torch.tensor([words(row, bits, planes) for row in codes.tolist()], dtype=torch.int32)


def gptq(weight: torch.Tensor, bits: int, group: int, layout: str = "gptq", order: torch.Tensor | None = None) -> Made:
    """GPTQ's layouts; ``order`` deals columns out to groups in another order than theirs."""
    columns = torch.arange(weight.shape[1]) if order is None else order
    groups = torch.empty_like(columns)
    groups[columns] = torch.arange(len(columns)) // (group or len(columns))
    codes, scales, zeros = rounded(weight, bits, groups)
    return gptq_words(codes, zeros, bits, layout) | {"scales": scales.T, "g_idx": groups.int()}, _dense(codes, scales, zeros, groups)


def gptq_words(codes: torch.Tensor, zeros: torch.Tensor, bits: int, layout: str) -> Tensors:
    """Codes (rows, columns) and zeros (rows, groups) in words as GPTQ's layouts have them."""
    planes = layout == "gptq_p" or bits in (5, 6, 7)
    stored = (zeros - 1) % 2**bits if layout == "gptq" else zeros
    return {"qweight": _packed(codes, bits, planes).T, "qzeros": _packed(stored.T, bits, planes)}


def awq(weight: torch.Tensor, group: int) -> Made:
    """AWQ's layout, the one called gemm."""
    groups = torch.arange(weight.shape[1]) // (group or weight.shape[1])
    codes, scales, zeros = rounded(weight, 4, groups)
    return awq_words(codes, zeros) | {"scales": scales.T}, _dense(codes, scales, zeros, groups)


def awq_words(codes: torch.Tensor, zeros: torch.Tensor) -> Tensors:
    """Codes (rows, columns) and zeros (rows, groups) of four bits in words as AWQ's layout has them."""

    def mixed(found: torch.Tensor) -> torch.Tensor:
        return _packed(found.T.reshape(found.shape[1], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(found.shape[1], -1), 4)

    return {"qweight": mixed(codes), "qzeros": mixed(zeros)}


def _dense(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    return (codes - zeros[:, groups]).float() * scales.float()[:, groups]


def float8(weight: torch.Tensor, height: int, width: int) -> Made:
    """8-bit floats with a scale for each block; those at the end may be smaller."""
    rows, columns = weight.shape
    scales, codes, dense = (
        torch.empty(-(-rows // height), -(-columns // width)),
        torch.empty_like(weight, dtype=torch.float8_e4m3fn),
        weight.float(),
    )
    for row in range(len(scales)):
        for column in range(scales.shape[1]):
            place = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
            scales[row, column] = weight[place].abs().max().float() / 448
            codes[place] = (weight[place].float() / scales[row, column]).to(torch.float8_e4m3fn)
            dense[place] = codes[place].float() * scales[row, column]
    return {"": codes, "weight_scale_inv": scales}, dense


def mxfp4(weight: torch.Tensor) -> Made:
    """A stack (experts, columns, rows) as GPT-OSS stores it, columns in groups of 32 with an exponent each."""
    turned = weight.float().transpose(1, 2)
    lots = turned.reshape(*turned.shape[:2], -1, 32)
    scales = (lots.abs().amax(-1) / 6).clamp_min(1e-30).log2().ceil().clamp(-127, 127)
    known = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = (lots / scales.exp2()[..., None]).abs().sub(known[:, None, None, None, None]).abs().argmin(0)
    signs = lots < 0
    dense = torch.where(signs, -known[codes], known[codes]) * scales.exp2()[..., None]
    full = codes + 8 * signs
    return {
        "blocks": (full[..., 0::2] | full[..., 1::2] << 4).to(torch.uint8), "scales": (scales + 127).to(torch.uint8),
    }, dense.reshape(turned.shape).transpose(1, 2)  # fmt: skip


def bitsandbytes(weight: torch.Tensor, type: str, double: bool = False, block: int = 64) -> Made:
    """What bitsandbytes stores of a weight in NF4 or FP4: blocks run on from row to row."""
    flat, levels = weight.float().flatten(), LEVELS[type]
    lots = list(flat.split(block))
    tops = torch.stack([lot.abs().max() for lot in lots])
    codes = torch.cat([(lot / top.clamp_min(1e-38) - levels[:, None]).abs().argmin(0) for lot, top in zip(lots, tops)])
    if type == "fp4":
        codes[(codes == 0) & (flat > 0)] = 8  # of both zeros it takes the negative one for what is above
    pairs = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
    said: dict[str, Any] = {"quant_type": type, "blocksize": block, "dtype": str(weight.dtype)[6:], "shape": list(weight.shape)}
    parts, scales = {"weight.absmax": tops, "weight.quant_map": levels.clone()}, tops
    if double:
        offset, known = tops.mean(), steps()
        outer = torch.stack([lot.abs().max() for lot in (tops - offset).split(256)])
        spread = outer.repeat_interleave(256)[: len(tops)]
        inner = torch.stack([((top - offset) / most - known).abs().argmin() for top, most in zip(tops, spread)])
        scales = known[inner] * spread + offset
        parts |= {"weight.absmax": inner.to(torch.uint8), "weight.nested_absmax": outer, "weight.nested_quant_map": known.clone()}
        said |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
    parts |= {"": (pairs[:, :1] << 4 | pairs[:, 1:]).to(torch.uint8)}
    parts[f"weight.quant_state.bitsandbytes__{type}"] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    dense = (levels[codes] * scales.repeat_interleave(block)[: len(codes)]).view(weight.shape)
    return parts, dense.to(weight.dtype).float()


def llm_int8(weight: torch.Tensor) -> Made:
    """What bitsandbytes stores of a weight in eight bits: whole numbers, and the largest magnitude of each row."""
    tops = weight.float().abs().amax(1)
    codes = (weight.float() * (127 / tops)[:, None]).round().to(torch.int8)
    parts = {"": codes, "SCB": tops, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes.float() * tops[:, None] * (1 / 127)


def compressed(weight: torch.Tensor, format: str, **settings: Any) -> Made:
    """What compressed-tensors packs in a format, and what it makes of that itself."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = QuantizationArgs(**settings)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=format)
    low, high = _ends(weight, args)
    wide = generate_gparam(low.min(), high.max()) if args.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(low, high, args, wide)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero} | ({} if wide is None else {"weight_global_scale": wide})
    compressor: Any = BaseCompressor.get_value_from_registry(format)
    parts = {name: value.data for name, value in compressor.compress(state, scheme).items()}
    dense = compressor.decompress(dict(parts), scheme)["weight"].data
    return {"" if name == "weight" else name: value for name, value in parts.items()}, dense


def _ends(weight: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest of the weights that share a scale."""
    if args.strategy == "tensor":
        return weight.amin(), weight.amax()
    if args.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if args.strategy == "block":
        height, width = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % width, 0, -weight.shape[0] % height))
        lots = padded.reshape(padded.shape[0] // height, height, -1, width)
        return lots.amin((1, 3)), lots.amax((1, 3))
    lots = weight.reshape(len(weight), -1, args.group_size)
    return lots.amin(-1), lots.amax(-1)


def compressed_config(format: str, **settings: Any) -> dict[str, Any]:
    """What such a checkpoint's config says."""
    group = {"targets": ["Linear"], "weights": settings, "format": format}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
    }
