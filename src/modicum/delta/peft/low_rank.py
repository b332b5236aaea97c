"""Adapters that add a product of thin matrices: LoRA in its variants, AdaLoRA, VeRA."""

from __future__ import annotations

import math

import torch

from modicum.core.errors import quoted
from modicum.delta.peft.adapter import Adapter, Layer
from modicum.forms import Dense, Diagonal, Form, LowRank, Normalized, Product, Shared, Sum

# Settings under which the layer computes something else than a changed weight, or a weight by another formula.
_OTHERWISE = (
    "use_qalora", "alora_invocation_tokens", "layer_replication", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
    "trainable_token_indices", "megatron_config",
)  # fmt: skip
# Starts that leave the base as it is.
_PLAIN = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def lora(adapter: Adapter, layer: Layer) -> dict[str, Form]:
    """LoRA, rsLoRA, DoRA; starts that moved the base take their part away again."""
    for name in _OTHERWISE:
        if adapter.config.get(name):
            raise adapter.error(f"{name} is on, which computes otherwise than LoRA and is not read. Merge it with PEFT.")
    layer.plain()
    rank, scale = strength(adapter, layer.module)
    if layer.unit.kind == "embedding":
        left, right = layer.take("lora_embedding_A", rank, layer.rows).T, layer.take("lora_embedding_B", layer.columns, rank).T
    else:
        left, right = layer.take("lora_B.weight", layer.rows, rank), layer.take("lora_A.weight", rank, layer.columns)
    added = LowRank((left * scale).contiguous(), right.contiguous())
    form: Form = Sum((layer.leaf, *_moved(adapter, layer, rank), added))
    if adapter.flag("use_dora"):
        axis = "columns" if layer.unit.kind == "embedding" else "rows"
        part = "lora_magnitude_vector.weight" if "lora_magnitude_vector.weight" in layer.parts else "lora_magnitude_vector"
        form = Normalized(form, layer.take(part, layer.columns if axis == "columns" else layer.rows), axis)
    return {layer.unit.name: form} | _bias(adapter, layer, scale)


def strength(adapter: Adapter, module: str) -> tuple[int, float]:
    """Rank and scale of a layer, as its settings say them. Raises ``ModelError``."""
    rank, alpha = adapter.of_layer("rank_pattern", module, "r", 8), adapter.of_layer("alpha_pattern", module, "lora_alpha", 8)
    if rank != int(rank) or rank < 1:
        raise adapter.error(f"the rank of {quoted(module)} must be a whole number from 1, is {rank}. Correct the settings.")
    return int(rank), alpha / (math.sqrt(rank) if adapter.flag("use_rslora") else rank)


def _bias(adapter: Adapter, layer: Layer, scale: float) -> dict[str, Form]:
    if not adapter.flag("lora_bias"):
        return {}
    if adapter.flag("use_dora"):
        raise adapter.error("lora_bias and use_dora are both on, which PEFT does not hold together. Correct the settings.")
    if layer.bias is None or layer.bias_leaf is None:
        raise adapter.error(f"{layer.module}: has no bias in the base, and the adapter adds one. Keep it as an adapter.")
    return {layer.bias.name: Sum((layer.bias_leaf, Dense(layer.take("lora_B.bias", layer.rows)[None] * scale)))}


def _moved(adapter: Adapter, layer: Layer, rank: int) -> tuple[Form, ...]:
    """What the start of training took from the base, where the adapter was not converted: it stands on the rest."""
    start = adapter.config.get("init_lora_weights", True)
    if start in _PLAIN or (isinstance(start, str) and start.lower() == "true"):
        return ()
    if start not in ("pissa", "olora"):
        raise adapter.error(
            f"was begun by {quoted(repr(start))}, which leaves a base that cannot be made again. Convert it: save_pretrained with "
            "path_initial_model_for_weight_conversion."
        )
    if layer.unit.kind not in ("linear", "conv1d") or (start == "olora" and layer.unit.transposed):
        raise adapter.error(f"{layer.module}: is of kind {layer.unit.kind}, which {start} is not read for. Convert the adapter.")
    weight = layer.base_weight().float()
    if start == "pissa":
        left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
        return (LowRank(-(left[:, :rank] * sizes[:rank]), right[:rank].contiguous()),)
    left, right = torch.linalg.qr(weight)
    _, scale = strength(adapter, layer.module)
    return (LowRank(left[:, :rank] * -scale, right[:rank].contiguous()),)


def adalora(adapter: Adapter, layer: Layer) -> dict[str, Form]:
    """A product of three: singular vectors and values, of which some were pruned."""
    layer.plain()
    begun, alpha = adapter.number("init_r", 12), adapter.number("lora_alpha", 8)
    values = layer.take("lora_E", -1)
    rank = len(values)
    left, right = layer.take("lora_B", layer.rows, rank), layer.take("lora_A", rank, layer.columns)
    scale = (alpha if alpha > 0 else float(rank)) / (begun + 1e-5)
    return {layer.unit.name: Sum((layer.leaf, LowRank(left * (values * scale), right)))}


def vera(adapter: Adapter, layer: Layer) -> dict[str, Form]:
    """Two vectors around two matrices that all layers share."""
    layer.linear()
    rank = int(adapter.number("r", 256))
    inner, rows = layer.take("vera_lambda_d", rank), layer.take("vera_lambda_b", layer.rows)
    left = Diagonal(Shared("vera_B", (layer.rows, rank), torch.float32), columns=inner)
    product = Product((left, Shared("vera_A", (rank, layer.columns), torch.float32)))
    return {layer.unit.name: Sum((layer.leaf, Diagonal(product, rows=rows)))}


def projections(adapter: Adapter, layers: list[Layer]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """VeRA's shared matrices: those that were saved, or drawn again from the seed as PEFT draws them; and what there is to say of that.

    Raises ``ModelError``.
    """
    rank = int(adapter.number("r", 256))
    rows, columns = max((layer.rows for layer in layers), default=1), max((layer.columns for layer in layers), default=1)
    saved = {name: adapter.shared[f"base_model.{name}"].float() for name in ("vera_A", "vera_B") if f"base_model.{name}" in adapter.shared}
    if saved:
        if len(saved) < 2 or any(each.ndim != 2 for each in saved.values()):
            raise adapter.error("must hold both base_model.vera_A and base_model.vera_B as matrices. Save the adapter anew.")
        small = saved["vera_A"].shape[0] != rank or saved["vera_B"].shape[1] != rank
        if small or saved["vera_A"].shape[1] < columns or saved["vera_B"].shape[0] < rows:
            raise adapter.error(f"base_model.vera_A and vera_B must reach {rank} × {columns} and {rows} × {rank}. Name its own base.")
        return saved, ()
    if not 1 <= rank <= 1 << 16:
        raise adapter.error(f"r must be from 1 to 65536, is {rank}. Correct the settings.")
    seed = int(adapter.number("projection_prng_key", 0))
    chance = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.empty(shape).uniform_(-(bound := math.sqrt(6 / shape[1])), bound, generator=chance)
        for name, shape in (("vera_A", (rank, columns)), ("vera_B", (rows, rank)))
    }
    return drawn, (f"VeRA's matrices were not saved: they are drawn again from seed {seed} by this version of torch.",)
