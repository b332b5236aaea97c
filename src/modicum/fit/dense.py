"""A compressed result as a dense model again: the very weights that its runtime has, as an ordinary checkpoint to go on training from."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from modicum.core.arguments import checked
from modicum.core.errors import ModelError, SettingError, quoted
from modicum.core.files import require_inside
from modicum.core.output import require_free, writing
from modicum.export.companions import copy_companions
from modicum.export.container import FILE as CONTAINER
from modicum.export.container import load, read_body
from modicum.export.depth import shallower
from modicum.export.loaded import loaded
from modicum.export.mark import unmarked
from modicum.export.narrow import dummy
from modicum.export.taking import Taking
from modicum.fit.card import FILE as CARD
from modicum.fit.card import densified
from modicum.fit.stored_gguf import GGUF
from modicum.models.open import model_class, open_model, read_config, skeleton
from modicum.models.quiet import hushed
from modicum.models.structure import find_blocks
from modicum.models.weights import Weights
from modicum.sweep.outputs import output_tensor

# What compressed-tensors stores beside a module's own parameters, and what of a result tells of its making.
_PARTS = (
    "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_global_scale", "weight_g_idx", "input_scale", "input_zero_point",
    "input_global_scale",
)  # fmt: skip
_OURS = ("receipt.json", "plan.json", "report.html", "run.yaml", CONTAINER, CARD)
# Share of the squared outputs by which a model with the same weights may differ: experts in a stack are summed in another order than in a list.
_SAME = 1e-4
_NOT_ROUNDED = "inputs are no longer rounded to eight bits, or four: a dense model takes them as they are."


@dataclass(frozen=True)
class Densified:
    """What was written: where, its bytes, by how much its outputs differ (relative, squared), and what a reader should know."""

    out: Path
    bytes: int
    difference: float
    notes: list[str] = field(default_factory=list)


@checked()
def densify(directory: str | Path, out: str | Path, *, overwrite: bool = False) -> Densified:
    """Write the compressed model in ``directory`` as a dense one that plain ``from_pretrained`` loads, for fine-tuning.

    Weights are the dequantized values, bit for bit as the result's own loader has them in the checkpoint's dtype; where a file says them more
    exactly than that dtype holds (GGUF), a note tells how much was rounded. Cuts stand as zeros, dropped blocks stay away. The outputs of both are
    compared before anything appears at ``out``. ``overwrite``: replace ``out`` where a run wrote it.

    *Needs and cost:* both models in memory.

    *Raises*: ``SettingError`` for a folder without a compressed model, an ``out`` that exists; ``ModelError`` for what no dense checkpoint of its
    class holds.
    """
    source, place = Path(directory), Path(out)
    make = _maker(source)
    require_free(place, [source], overwrite)
    with writing(place, [source], overwrite) as made, hushed(), torch.no_grad():
        module, notes = make(source, made)
        difference = _compared(module, made)
        _beside(source, made)
    return Densified(place, sum(path.stat().st_size for path in place.glob("*.safetensors")), difference, notes)


_Made = tuple[nn.Module, list[str]]


def _maker(source: Path) -> Callable[[Path, Path], _Made]:
    """How the result in a folder is made dense. Raises ``SettingError`` where it holds nothing compressed."""
    if not source.is_dir():
        raise SettingError(f"{source}: must be a folder with a compressed model, is none. Check the path.")
    if not (source / "config.json").is_file():
        raise SettingError(f"{source}: must hold a model of Transformers with its config.json, holds none. Load it with modicum.load.")
    require_inside(source)
    if (source / GGUF).is_file():
        return _from_gguf
    if (source / CONTAINER).is_file():
        return _from_container
    config = getattr(read_config(source), "quantization_config", None)
    method = config.get("quant_method") if isinstance(config, dict) else None
    if method == "bitsandbytes":
        return _from_blocks
    if method != "compressed-tensors":
        raise SettingError(
            f"{source}: must hold a compressed model, {f'is quantized by {method}' if method else 'is dense already'}. "
            f"{'Name a folder that fit wrote.' if method else 'Load it as it is.'}"
        )
    return _from_compressed


# From each kind of result


def _from_container(source: Path, made: Path) -> _Made:
    module, dropped = load(source, narrow=False), frozenset(read_body(source)["dropped"])
    config = unmarked(read_config(source))
    if dropped:
        whole = skeleton(type(module), copy.deepcopy(config))
        blocks = find_blocks(whole, Weights(whole))
        config = shallower(SimpleNamespace(module=whole, blocks=blocks), config, dropped)  # type: ignore[arg-type]
        if config is None:
            raise ModelError(
                f"{source}: its config cannot describe the model without the blocks that were left out. Load it with modicum.load."
            )
    _save(module, config, source, made)
    return module, [_NOT_ROUNDED] if _rounds_inputs(module) else []


def _from_gguf(source: Path, made: Path) -> _Made:
    from modicum.export.gguf.architectures import row_of
    from modicum.export.gguf.loading import filled
    from modicum.export.gguf.reader import GgufFile

    config = read_config(source)
    cls, dtype = model_class(config, str(source)), getattr(config, "dtype", None) or torch.float32
    if (row := row_of(cls)) is None:
        raise ModelError(f"{source}: must be of an architecture whose GGUF names are known, {cls.__name__} is none. Report this.")
    exact = copy.deepcopy(config)
    exact.dtype = torch.float32
    module = filled(GgufFile(source / GGUF), cls, exact, row)
    notes = _rounded(module, dtype)
    _save(module, config, source, made)
    return module, notes


def _rounded(module: nn.Module, dtype: torch.dtype) -> list[str]:
    """Round every weight to the checkpoint's dtype; what that loses."""
    changed, total, most = 0, 0, 0.0
    for parameter in module.parameters():
        exact, parameter.data = parameter.data, parameter.data.to(dtype)
        off = (parameter.data.float() - exact).abs()
        changed, total = changed + int(off.count_nonzero()), total + exact.numel()
        most = max(most, float((off / exact.abs().clamp(min=1e-30)).max()))
    if not changed:
        return []
    kind = str(dtype).removeprefix("torch.")
    return [
        f"{changed / total:.1%} of the weights have more digits in the file than {kind} holds, and were rounded by {most:.1e} of their size at the "
        "most."
    ]


def _from_compressed(source: Path, made: Path) -> _Made:
    """Weights as Transformers' own loader decodes them."""
    config = read_config(source)
    module = loaded(model_class(config, str(source)), source)
    _answer(module)  # which decodes every weight for good
    del config.quantization_config
    _save(module, config, source, made)
    return module, [_NOT_ROUNDED] if _rounds_inputs(module) else []


def _from_blocks(source: Path, made: Path) -> _Made:
    """Weights as bitsandbytes decodes them, whether it is installed or not."""
    model, config = open_model(source, allow_quantized_source=True), read_config(source)
    model.weights.load(model.weights.names)
    del config.quantization_config
    _save(model.module, config, source, made)
    return model.module, []


def _rounds_inputs(module: nn.Module) -> bool:
    schemes = (getattr(part, "quantization_scheme", None) for part in module.modules())
    ours = any(isinstance(hook, Taking) for part in module.modules() for hook in part._forward_pre_hooks.values())
    return ours or any(scheme is not None and scheme.input_activations is not None for scheme in schemes)


def _save(module: nn.Module, config: Any, source: Path, made: Path) -> None:
    """Write a module with dense weights as its class saves itself. Raises ``ModelError`` where the class has no place for a weight."""
    plain = skeleton(type(module), copy.deepcopy(config))
    wanted = plain.state_dict()
    found = {name: value for name, value in module.state_dict().items() if name in wanted or name.rpartition(".")[2] not in _PARTS}
    who, instead = f"{source}: a dense {type(plain).__name__}", "Load it with modicum.load."
    if strange := sorted(found.keys() - wanted.keys()):
        raise ModelError(f"{who} has no place for {quoted(strange[0])}, which compression added. {instead}")
    if lacking := sorted(name for name in wanted if name not in found or found[name].shape != wanted[name].shape):
        raise ModelError(f"{who} computes with {quoted(lacking[0])} otherwise than this model. {instead}")
    plain.load_state_dict(found, assign=True)
    plain.tie_weights()  # type: ignore[operator]
    plain.save_pretrained(made)  # type: ignore[operator]


# What was made


def _answer(module: nn.Module) -> torch.Tensor:
    batch = dummy(module)
    assert isinstance(batch, dict)
    return output_tensor(module.eval()(**batch))[0].float()


def _compared(module: nn.Module, made: Path) -> float:
    """By how much the written model's outputs differ, relative and squared. Raises ``ModelError`` where that is more than rounding."""
    again = loaded(type(module), made)
    if _rounds_inputs(module):
        return 0.0  # the compressed model answers to other inputs; its weights were read off it
    wanted, found = _answer(module), _answer(again)
    gap = float((wanted - found).square().sum() / wanted.square().sum().clamp(min=1e-30))
    if not gap <= _SAME:
        raise ModelError(f"{made.name}: the dense model must answer as the compressed one does, differs by {gap:.2g}. Report this.")
    return gap


def _beside(source: Path, made: Path) -> None:
    """Tokenizer, licence and all else that stands beside the weights, and a card of its own."""
    written = {path.name for path in made.iterdir()}
    with tempfile.TemporaryDirectory() as folder:
        copy_companions(source, Path(folder))
        for path in sorted(Path(folder).iterdir()):
            if path.name not in (*written, *_OURS):
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, made / path.name)
    (made / CARD).write_text(densified(source), encoding="utf-8")
