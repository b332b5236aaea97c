"""Names and pieces under which Transformers' own loader finds the tensors of a model, which depend on whether anything is quantized."""

from __future__ import annotations

import copy
from contextlib import nullcontext, suppress
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn

from modicum.core.unit import Unit
from modicum.models.model import Model
from modicum.models.open import skeleton
from modicum.sweep import Script

# Experts by (parameter, number) → names on disk, with the rows of the expert's matrix that each holds.
Places = dict[tuple[str, int], list[tuple[str, list[int]]]]


class Names:
    """What stands where on disk.

    Transformers saves and loads by tables of renamings and conversions. Renamings may be written for ``weight`` alone; a conversion of weights
    that are not quantized loses them where others are (5.24), and stacks of experts may be lists of modules then. So what is quantized, and what
    stands beside it, has a name that the loader takes as it is.
    """

    def __init__(self, model: Model, script: Script):
        self.model, self.script = model, script
        self._shown: dict[tuple[str, tuple[int, ...], torch.dtype], dict[str, torch.Tensor]] = {}
        self._quantized: dict[tuple[str, str], str] = {}  # asked for every option of every layer

    def on_disk(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors under the names, and in the pieces, that Transformers saves; under those that it takes as they are where it merges several."""
        return self.beside(state) if self._merged else self._saved(state)

    def _saved(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors as Transformers saves them; of a lone one without values it is asked once."""
        from transformers.core_model_loading import revert_weight_conversion

        lone = next(iter(state.items())) if len(state) == 1 else None
        if lone is not None and lone[1].is_meta:
            if self._alike and lone[0] in self.model.weights.names:
                return dict(state)
            key = (lone[0], tuple(lone[1].shape), lone[1].dtype)
            if key not in self._shown:
                self._shown[key] = revert_weight_conversion(cast(Any, self.model.module), state)
            return dict(self._shown[key])
        return revert_weight_conversion(cast(Any, self.model.module), state)

    @cached_property
    def _alike(self) -> bool:
        """Whether every weight has its own name and shape on disk, told of all at once: Transformers looks through the whole model each time."""
        shown = self._stored()
        try:
            saved = self._saved(dict(shown))
        except Exception:  # whatever a conversion raises at what it was not made for
            return False
        return _shapes(saved) == _shapes(shown)

    def _stored(self) -> dict[str, torch.Tensor]:
        """All weights without their values."""
        weights = self.model.weights
        return {first: torch.empty(weights.held(first).shape, dtype=weights.dtype(first), device="meta") for first in weights.names}

    @cached_property
    def _merged(self) -> bool:
        """Whether weights are saved in other pieces than can be written one after the other."""
        if self._alike:
            return False
        shown = self._stored()
        try:
            whole = _shapes(self._saved(dict(shown)))
            pieces = {name: shape for first, tensor in shown.items() for name, shape in _shapes(self._saved({first: tensor})).items()}
        except Exception:  # whatever a conversion raises at a part of what it was made for
            return True
        return whole != pieces

    def beside(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors that stay as they are beside others that are quantized."""
        found: dict[str, torch.Tensor] = {}
        for name, value in state.items():
            pieces = self._apart(name, value)
            if pieces is None:
                itself = self._lands(name) == (name, None)
                with suppress(Exception) if itself else nullcontext():  # what a conversion raises at a part of what it was made for
                    saved = self._saved({name: value})
                    itself = itself and not (len(saved) == 1 and self._lands(next(iter(saved))) == (name, None))
                pieces = {name: value} if itself else saved
            found |= pieces
        return found

    def quantized(self, module: str, parameter: str) -> str:
        """The name that a quantized module has on disk."""
        if (module, parameter) not in self._quantized:
            lands = lambda name: self._lands(f"{name}.weight_packed") == (f"{module}.weight_packed", None)
            (saved,) = self.beside({parameter: torch.empty(1, 1, device="meta")})
            saved = saved.removesuffix(".weight")
            self._quantized[module, parameter] = saved if lands(saved) or not lands(module) else module
        return self._quantized[module, parameter]

    # Where the loader puts a name

    @cached_property
    def _tables(self) -> tuple[list[Any], list[Any]]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        mapping: list[Any] = get_model_conversion_mapping(cast(Any, self.model.module))
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        return [entry for entry in mapping if not isinstance(entry, WeightConverter)], converters

    def _lands(self, name: str) -> tuple[str, str | None]:
        """Where the loader puts a tensor of this name, and the conversion that takes it."""
        from transformers.core_model_loading import rename_source_key

        renamings, converters = self._tables
        return rename_source_key(name, renamings, converters)

    # Experts

    @cached_property
    def experts(self) -> dict[str, Places]:
        """By the module of a stack, where each of its experts is when it is quantized; stacks that nothing is known of are left out."""
        found = {name: self._listed(name) or self._split(name) for name in self.script.stacks}
        return {name: places for name, places in found.items() if places}

    def _split(self, name: str) -> Places:
        """As the tables of conversions take a stack apart."""
        use, places = self.script.stacks[name], Places()
        for attribute in use.attributes:
            first = self.model.weights.first[f"{name}.{attribute}"]
            count, rows, columns = self.model.weights.held(first).shape
            marks = torch.arange(count * rows).view(count, rows, 1).expand(count, rows, min(columns, 2)).contiguous()
            if use.transposed[attribute]:
                return {}
            for disk, piece in self._saved({first: marks}).items():
                if piece.ndim != 2 or not disk.endswith(".weight"):
                    return {}
                expert = int(piece[0, 0]) // rows
                places.setdefault((first, expert), []).append((disk, (piece[:, 0] - expert * rows).tolist()))
        return places if len(places) == len(use.attributes) * self._count(name) else {}

    def _listed(self, name: str) -> Places:
        """As the linears of the list of modules that stands in a stack's place once anything is quantized, in their order."""
        places, members = Places(), self._lists.get(name)
        if members is None or len(members) != self._count(name):
            return {}
        for expert, member in enumerate(members):
            linears = {inner: part for inner, part in member.named_modules() if isinstance(part, nn.Linear)}
            for attribute in self.script.stacks[name].attributes:
                first = self.model.weights.first[f"{name}.{attribute}"]
                unit = next(one for one in self.model.units.values() if one.parameter == first and one.expert == expert)
                low = 0
                for inner in list(linears):
                    part = linears[inner]
                    if part.in_features == unit.shape[1] and low + part.out_features <= unit.shape[0]:
                        rows = list(range(low, low + part.out_features))
                        places.setdefault((first, expert), []).append((f"{name}.{expert}.{inner}.weight", rows))
                        low += part.out_features
                        del linears[inner]
                if low != unit.shape[0]:
                    return {}
            if linears:
                return {}
        return places

    @cached_property
    def _lists(self) -> dict[str, nn.ModuleList]:
        """Lists of modules that the quantizer's loader puts in the place of other modules."""
        from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer as Quantizer

        module = skeleton(type(self.model.module), copy.deepcopy(self.model.config))
        before = {name: type(part) for name, part in module.named_modules()}
        asked = _Asked()
        if callable(convert := getattr(Quantizer, "_convert_model_for_quantization", None)):
            convert(asked, module)
        return {
            name: part
            for name, part in module.named_modules()
            if isinstance(part, nn.ModuleList) and before.get(name) not in (None, type(part))
        }

    def _apart(self, first: str, value: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """The matrices of a stack, one expert after the other, where a list of modules stands in its place; None for all else."""
        module = first.rpartition(".")[0]
        if module not in self._lists or module not in self.experts:
            return None
        units = [unit for unit in self.model.units.values() if unit.parameter == first]
        return {name: unit.matrix(value)[rows].contiguous() for unit in units for name, rows in self.place(unit)}

    def place(self, unit: Unit) -> list[tuple[str, list[int]]]:
        """Where an expert is on disk."""
        assert unit.expert is not None
        return self.experts[unit.module][unit.parameter, unit.expert]

    def _count(self, name: str) -> int:
        use = self.script.stacks[name]
        return len(self.model.weights.held(self.model.weights.first[f"{name}.{use.attributes[0]}"]))


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


class _Asked:
    """What Transformers' quantizer looks at when it exchanges modules."""

    def __init__(self) -> None:
        from transformers.utils.quantization_config import QuantizationMethod

        self.quantization_config = type("Asked", (), {"quant_method": QuantizationMethod.COMPRESSED_TENSORS})
