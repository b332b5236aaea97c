"""A delta as an adapter's folder that PEFT loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError, quoted
from modicum.core.files import write_json
from modicum.core.tensorwriter import TensorWriter
from modicum.delta.delta import Delta, leaves
from modicum.delta.peft.adapter import CONFIG, PREFIX, TENSORS
from modicum.forms import Base, Blend, Dense, Diagonal, Form, LowRank, Normalized, Product, Seeded, Shared, Sum
from modicum.models.open import open_model
from modicum.models.trainable import trainable


def to_peft(delta: Delta, directory: str | Path, base: Any) -> None:
    """Write a delta of ``base`` as a LoRA adapter (DoRA where rows have lengths of their own), which ``peft.PeftModel`` loads.

    Products of thin matrices that are added to linear layers, Conv1D, convolutions and tables become one pair of factors each, in float32; each rank
    is its own, and the scale is 1.

    Raises ``ModelError`` for what PEFT's LoRA cannot hold: whole weights, scaled and turned ones, experts of a stack, weights with several names.
    """
    folder = Path(directory)
    model = open_model(base)
    units = trainable(model.module)
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    lengths: set[bool] = set()
    for name, form in delta.forms.items():
        unit = units.get(name)
        if unit is None:
            raise ModelError(f"{model.name}: has no weight {quoted(name)}, which the delta changes. Name its own base.")
        if unit.kind not in ("linear", "conv1d", "convolution", "embedding") or unit.aliases or unit.groups > 1:
            why = "has several names" if unit.aliases else f"is of kind {unit.kind}"
            raise ModelError(f"{name}: {why}, and an adapter of PEFT must hold layers of their own. Apply the delta instead.")
        magnitudes = form.lengths if isinstance(form, Normalized) else None
        left, right = factors(name, form.parts[0] if isinstance(form, Normalized) else form, delta.shared)
        lengths.add(magnitudes is not None)
        if isinstance(form, Normalized) and (form.axis == "columns") != (unit.kind == "embedding"):
            raise ModelError(f"{name}: has lengths of {form.axis}, where PEFT's DoRA has others. Apply the delta instead.")
        key, rank = f"{PREFIX}{unit.module}", right.shape[0]
        ranks[unit.module] = rank
        if unit.kind == "embedding":
            tensors |= {f"{key}.lora_embedding_A": left.T, f"{key}.lora_embedding_B": right.T}
        else:
            kernel = unit.stored_shape[2:] if unit.kind == "convolution" else ()
            tensors[f"{key}.lora_A.weight"] = right.reshape(rank, -1, *kernel) if kernel else right
            tensors[f"{key}.lora_B.weight"] = left.reshape(*left.shape, *(1 for _ in kernel))
        if magnitudes is not None:
            shape = (1, -1, *(1 for _ in unit.stored_shape[2:])) if unit.kind == "convolution" else (-1,)
            tensors[f"{key}.lora_magnitude_vector"] = magnitudes.float().reshape(shape)
    if not ranks:
        raise ModelError("delta: must change a weight, changes none. Train it first.")
    if len(lengths) > 1:
        raise ModelError(
            "delta: gives some weights lengths of their own and others none, and an adapter of PEFT holds one of both. Apply it."
        )
    turned = {units[name].kind == "conv1d" for name in delta.forms}
    if len(turned) > 1:
        raise ModelError("delta: changes layers of both orientations, and an adapter of PEFT says one for all. Apply it instead.")
    _save(folder, tensors, ranks, lengths == {True}, turned == {True}, str(base) if isinstance(base, str | Path) else "")


def factors(name: str, form: Form, shared: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """One pair of factors for all that is added to the base. Raises ``ModelError``."""
    pairs = _added(name, form, shared, 1.0)
    if not pairs:
        raise ModelError(f"{name}: its change must be a product of thin matrices, is none. Apply the delta instead.")
    return torch.cat([left for left, _ in pairs], 1), torch.cat([right for _, right in pairs])


def _added(name: str, form: Form, shared: Any, scale: float, *, based: bool = True) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of factors that a form adds to its base, on which it must stand where it is ``based``."""
    if isinstance(form, Base):
        return []
    if based and not isinstance(form, Sum | Blend):
        raise ModelError(
            f"{name}: is a new weight of kind {form.kind}, which an adapter of thin matrices cannot hold. Apply the delta instead."
        )
    if isinstance(form, Sum) and isinstance(form.parts[0], Base) == based and not any(list(leaves(part)) for part in form.parts[1:]):
        return [pair for part in form.parts[1 if based else 0 :] for pair in _added(name, part, shared, scale, based=False)]
    if isinstance(form, Blend):
        return [pair for weight, part in zip(form.weights, form.parts[1:]) for pair in _added(name, part, shared, scale * weight)]
    if isinstance(form, LowRank):
        return [(form.left.float() * scale, form.right.float())]
    if isinstance(form, Diagonal) and form.rows is not None and form.columns is None and isinstance(form.parts[0], Product):
        return [(left * form.rows[:, None], right) for left, right in _added(name, form.parts[0], shared, scale, based=False)]
    if isinstance(form, Product) and len(form.parts) == 2 and all(_held(part) for part in form.parts):
        left, right = (part.on(None, shared).value().float() for part in form.parts)
        return [(left * scale, right)]
    raise ModelError(
        f"{name}: is changed by a form of kind {form.kind}, which an adapter of thin matrices cannot hold. Apply the delta instead."
    )


def _held(form: Form) -> bool:
    """Whether a factor has a value without a base."""
    return isinstance(form, Dense | LowRank | Seeded | Shared) or (isinstance(form, Diagonal) and _held(form.parts[0]))


def _save(folder: Path, tensors: dict[str, torch.Tensor], ranks: dict[str, int], dora: bool, turned: bool, base: str) -> None:
    most = max(ranks.values())
    own = {module: rank for module, rank in ranks.items() if rank != most}
    settings = {
        "peft_type": "LORA", "base_model_name_or_path": base or None, "r": most, "lora_alpha": most, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(ranks), "rank_pattern": own, "alpha_pattern": own, "use_dora": dora, "use_rslora": False,
        "fan_in_fan_out": turned, "init_lora_weights": True, "inference_mode": True, "modules_to_save": None, "task_type": None,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with TensorWriter(folder / TENSORS, {name: (torch.float32, tuple(tensor.shape)) for name, tensor in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.contiguous())
    write_json(folder / CONFIG, settings)
