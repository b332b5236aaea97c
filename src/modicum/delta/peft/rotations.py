"""Adapters that turn the inputs of a weight: HRA by reflections, OFT and BOFT by small blocks."""

from __future__ import annotations

import math

import torch

from modicum.delta.peft.adapter import Adapter, Layer
from modicum.forms import Diagonal, Form, Householder, Rotated


def hra(adapter: Adapter, layer: Layer) -> dict[str, Form]:
    """Reflections one after the other; made orthogonal to each other first where the settings say so."""
    layer.linear()
    rank = adapter.of_layer("rank_pattern", layer.module, "r", 8)
    vectors = layer.take("hra_u", layer.columns, int(rank))
    if bool((vectors.norm(dim=0) == 0).any()):
        raise adapter.error(f"{layer.module}.hra_u must hold no vector of length zero, holds one. Train the adapter anew.")
    return {layer.unit.name: Householder(layer.leaf, _orthogonal(vectors) if adapter.flag("apply_GS") else vectors)}


def oft(adapter: Adapter, layer: Layer) -> dict[str, Form]:
    """Rotations of blocks of inputs, as Cayley transforms of skew matrices or the first terms of their series."""
    layer.linear()
    weight = _entries(adapter, layer)
    count, entries = weight.shape
    size = (1 + math.isqrt(1 + 8 * entries)) // 2
    shared = adapter.flag("block_share")
    if size * (size - 1) // 2 != entries or layer.columns % size or count != (1 if shared else layer.columns // size):
        raise adapter.error(f"{layer.module}.oft_R.weight: {count} × {entries} entries turn no {layer.columns} inputs. Name its own base.")
    rows, columns = torch.triu_indices(size, size, 1)
    skew = torch.zeros(count, size, size)
    skew[:, rows, columns] = weight
    skew = skew - skew.mT
    if adapter.flag("coft"):
        most = adapter.number("eps", 6e-5) / math.sqrt(count)
        length = skew.norm(dim=(1, 2), keepdim=True)
        skew = torch.where(length <= most, skew, skew * (most / length))
    told = adapter.flag("use_cayley_neumann")
    turned = _series(adapter, skew) if told else _cayley(skew)
    return {layer.unit.name: Rotated(layer.leaf, turned.mT.contiguous())}


def boft(adapter: Adapter, layer: Layer) -> dict[str, Form]:
    """Rotations of blocks of inputs, and a scale for each output."""
    layer.linear()
    stored = layer.parts.get("boft_R")
    if stored is None or stored.ndim != 4 or stored.shape[2] != stored.shape[3] or stored.shape[1] * stored.shape[2] != layer.columns:
        raise adapter.error(f"must hold {layer.module}.boft_R of square blocks that cover {layer.columns} inputs. Name its own base.")
    if stored.shape[0] != 1:
        raise adapter.error(f"{layer.module}: has {stored.shape[0]} butterfly factors, and one is read here. Merge it with PEFT on a GPU.")
    count, size = stored.shape[1], stored.shape[2]
    blocks = layer.take("boft_R", 1, count * size * size).reshape(count, size, size)
    turned = _cayley(0.5 * (blocks - blocks.mT))
    return {layer.unit.name: Diagonal(Rotated(layer.leaf, turned.mT.contiguous()), rows=layer.take("boft_s", layer.rows))}


def _entries(adapter: Adapter, layer: Layer) -> torch.Tensor:
    stored = layer.parts.get("oft_R.weight")
    if stored is None or stored.ndim != 2 or not 1 <= stored.shape[1] <= 1 << 24:
        raise adapter.error(f"must hold {layer.module}.oft_R.weight as blocks × entries, does not. Save the adapter anew.")
    return layer.take("oft_R.weight", stored.shape[0], stored.shape[1])


def _cayley(skew: torch.Tensor) -> torch.Tensor:
    """``(I - S)(I + S)⁻¹`` for each block."""
    one = torch.eye(skew.shape[-1])
    return torch.linalg.solve(one + skew, one - skew, left=False)


def _series(adapter: Adapter, skew: torch.Tensor) -> torch.Tensor:
    """``I + 2 S + 2 S² + ... + Sᵗ``: the terms that PEFT sums, whose last one counts once, and which are four where three are asked for."""
    terms = int(adapter.number("num_cayley_neumann_terms", 5))
    if not 1 <= terms <= 100:
        raise adapter.error(f"num_cayley_neumann_terms must be from 1 to 100, is {terms}. Correct the settings.")
    power = torch.eye(skew.shape[-1]).expand_as(skew)
    total, last = power.clone(), terms - 1 if terms < 3 else max(3, terms - 1)
    for number in range(1, last + 1):
        power = power @ skew
        total = total + (power if number == last and terms > 2 else 2 * power)
    return total


def _orthogonal(vectors: torch.Tensor) -> torch.Tensor:
    """The columns made orthonormal one after the other."""
    found: list[torch.Tensor] = []
    for vector in vectors.T:
        for other in found:
            vector = vector - (other @ vector) * other
        found.append(vector / vector.norm().clamp_min(1e-30))
    return torch.stack(found, 1)
