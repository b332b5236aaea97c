"""Adapters that scale a weight, or add products of entries and of blocks to it: IA3, LoHa, LoKr."""

from __future__ import annotations

import torch

from modicum.delta.peft.adapter import Adapter, Layer
from modicum.forms import Dense, Diagonal, Form, Hadamard, Kronecker, LowRank, Sum


def ia3(adapter: Adapter, layer: Layer) -> dict[str, Form]:
    """Inputs of feed-forward layers scaled, outputs of others, their bias too."""
    if layer.unit.kind not in ("linear", "conv1d", "convolution"):
        layer.linear()
    told = adapter.names("feedforward_modules")
    forward = adapter.matches(told, layer.module) if isinstance(told, str) else layer.module.endswith(tuple(told))
    if forward:
        layer.plain()
        width = layer.unit.stored_shape[1] if layer.unit.kind == "convolution" else layer.columns
        scale = layer.take("ia3_l", width).repeat_interleave(layer.columns // width)
        return {layer.unit.name: Diagonal(layer.leaf, columns=scale)}
    scale = layer.take("ia3_l", layer.rows)
    forms: dict[str, Form] = {layer.unit.name: Diagonal(layer.leaf, rows=scale)}
    if layer.bias is not None and layer.bias_leaf is not None:
        forms[layer.bias.name] = Diagonal(layer.bias_leaf, columns=scale)
    return forms


def loha(adapter: Adapter, layer: Layer) -> dict[str, Form]:
    """Two products of thin matrices, multiplied entry by entry."""
    layer.plain()
    rank = _rank(adapter, layer)
    scale = adapter.of_layer("alpha_pattern", layer.module, "alpha", 8) / rank
    one, other = (
        _pair(layer, f"hada_w{index}_a", f"hada_w{index}_b", f"hada_t{index}", rank, layer.rows, layer.columns) for index in (1, 2)
    )
    return {layer.unit.name: Sum((layer.leaf, Hadamard((LowRank(one.left * scale, one.right), other))))}


def lokr(adapter: Adapter, layer: Layer) -> dict[str, Form]:
    """A Kronecker product of two matrices, each whole or a product of thin ones."""
    layer.plain()
    rank = _rank(adapter, layer)
    scale = adapter.of_layer("alpha_pattern", layer.module, "alpha", 8) / rank
    coarse: Form
    if "lokr_w1" in layer.parts:
        coarse = Dense(layer.take("lokr_w1", *_sides(adapter, layer, "lokr_w1")) * scale)
    else:
        rows, columns = _sides(adapter, layer, "lokr_w1_a")[0], _sides(adapter, layer, "lokr_w1_b")[1]
        coarse = LowRank(layer.take("lokr_w1_a", rows, rank) * scale, layer.take("lokr_w1_b", rank, columns))
    if not coarse.shape[0] or not coarse.shape[1] or layer.rows % coarse.shape[0] or layer.columns % coarse.shape[1]:
        raise adapter.error(f"{layer.module}: parts of {coarse.shape} do not divide its {layer.unit.shape}. Name its own base.")
    rows, columns = layer.rows // coarse.shape[0], layer.columns // coarse.shape[1]
    fine: Form = (
        Dense(layer.take("lokr_w2", rows, columns))
        if "lokr_w2" in layer.parts
        else _pair(layer, "lokr_w2_a", "lokr_w2_b", "lokr_t2", rank, rows, columns)
    )
    return {layer.unit.name: Sum((layer.leaf, Kronecker(coarse, fine)))}


def _rank(adapter: Adapter, layer: Layer) -> int:
    rank = adapter.of_layer("rank_pattern", layer.module, "r", 8)
    if rank != int(rank) or rank < 1:
        raise adapter.error(f"the rank of {layer.module} must be a whole number from 1, is {rank}. Correct the settings.")
    return int(rank)


def _sides(adapter: Adapter, layer: Layer, part: str) -> tuple[int, int]:
    if part not in layer.parts or layer.parts[part].ndim != 2:
        raise adapter.error(f"must hold a matrix {layer.module}.{part}, does not. Save the adapter anew.")
    return layer.parts[part].shape[0], layer.parts[part].shape[1]


def _pair(layer: Layer, left: str, right: str, core: str, rank: int, rows: int, columns: int) -> LowRank:
    """Two thin factors; a convolution may keep a core between the factors of its channels, which is multiplied out here."""
    if core not in layer.parts:
        return LowRank(layer.take(left, rows, rank), layer.take(right, rank, columns))
    kernel = layer.parts[core].shape[2:].numel() if layer.parts[core].ndim > 2 else 0
    if not kernel or columns % kernel:
        raise layer.adapter.error(f"{layer.module}.{core} must have the kernel of its convolution. Name its own base.")
    inner = layer.take(core, rank, rank * kernel).reshape(rank, rank, kernel)
    channels = layer.take(right, rank, columns // kernel)
    return LowRank(layer.take(left, rank, rows).T.contiguous(), torch.einsum("ijk,jc->ick", inner, channels).reshape(rank, columns))
