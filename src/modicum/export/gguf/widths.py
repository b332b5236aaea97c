"""Blocks of different widths: what a head says of each, and a module as wide as a file's tensors are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from modicum.export.gguf.naming import Naming
from modicum.export.gguf.reader import GgufFile
from modicum.models.weights import Weights

# Kinds of tensors that a cut narrows: those of an attention, and those of a feed-forward.
_ATTENTION, _INNER = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
# What a head says of each block then.
KEYS = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
Shape = tuple[int, ...]


def numbers(shapes: Mapping[str, Shape], blocks: Iterable[int], width: int) -> dict[str, list[int]] | None:
    """Heads, heads of keys and values, and inner columns of each of ``blocks``, by their keys in a head; None where shapes are of no such numbers.

    ``shapes`` are those of tensors by their names in the file, ``width`` is that of one head.
    """
    found: dict[str, list[int]] = {key: [] for key in KEYS}
    for block in blocks:
        try:
            q, k, v, o, gate, up, down = (shapes[f"blk.{block}.{kind}.weight"] for kind in (*_ATTENTION, *_INNER))
        except KeyError:
            return None
        heads, keys, inner = q[0] // width, k[0] // width, gate[0]
        wanted = heads * width, keys * width, keys * width, heads * width, inner, inner
        if (q[0], k[0], v[0], o[1], up[0], down[1]) != wanted or not heads or not keys or heads % keys or not inner:
            return None
        for key, number in zip(found, (heads, keys, inner)):
            found[key].append(number)
    return found


def narrowed(module: nn.Module, naming: Naming, file: GgufFile) -> None:
    """Make linears of a module as wide as the file's tensors are, on ``meta``, and attentions count their heads by them."""
    weights = Weights(module)
    for name in weights.names:
        held = weights.held(name)
        part = naming.parts(name, tuple(held.shape))[0]
        shape = file.tensors[part.name].shape if part.name in file.tensors else tuple(held.shape)
        if part.kind in (*_ATTENTION, *_INNER) and len(shape) == 2 and held.ndim == 2:
            owner: Any = module.get_submodule(name.rpartition(".")[0])
            owner.out_features, owner.in_features = shape
            weights.put(name, torch.empty(shape, dtype=held.dtype, device="meta"))
    for each in module.modules():
        if hasattr(each, "num_key_value_groups"):
            attention: Any = each
            attention.num_key_value_groups = attention.q_proj.out_features // attention.k_proj.out_features
