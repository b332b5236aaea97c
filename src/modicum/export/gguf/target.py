"""What llama.cpp runs: one file, in which every tensor has a type of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError, SettingError
from modicum.core.ggml import TYPES
from modicum.core.option import Option
from modicum.core.unit import Site, Unit
from modicum.data.splits import Batch
from modicum.drop._family import SiteCutter
from modicum.export._family import Entries
from modicum.export.companions import copy_companions, save_config, save_generation
from modicum.export.configured import Configured
from modicum.export.depth import renamed, renumbering
from modicum.export.gguf.architectures import Architecture, Key, head_width, row_of
from modicum.export.gguf.fields import ALIGNMENT, Place, aligned, place_bytes
from modicum.export.gguf.file import File, Tensor
from modicum.export.gguf.loading import compared, load_gguf
from modicum.export.gguf.metadata import check, factors, values, window
from modicum.export.gguf.naming import DENSE, MATRICES, Naming, Part, stored_shape
from modicum.export.gguf.others import read_by_transformers, run_by_llama_cpp
from modicum.export.gguf.vocabulary import vocabulary
from modicum.export.gguf.widths import KEYS, numbers
from modicum.export.narrow import Incision
from modicum.export.placing import persistent_buffers
from modicum.export.uniform import remaining_shapes
from modicum.forms import Cut, Dense, Form, Ggml
from modicum.models.model import Model
from modicum.quantize.ggml import Ggml as GgmlMethod
from modicum.sweep import Script

# The format's numbers of types without blocks.
NUMBERS = {"f32": 0, "f16": 1, "bf16": 30} | {name: type.number for name, type in TYPES.items()}
# Where rows are no whole blocks of 256: the type of blocks of 32 that llama.cpp's own quantizer takes instead.
_SHORT = dict.fromkeys(("iq2_s", "q2_k", "q3_k", "iq3_s", "iq4_xs"), "iq4_nl") | {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
# Channels that go together where a cut leaves some, the most that divides them and leaves so many lots.
_STEPS, _FEWEST = (256, 64, 32, 16, 8), 8


class Gguf(Configured):
    """GGUF files.

    Every unit is a site of its own, of a type of its own; the experts of a stack have one. Rows that blocks of 256 do not fill take blocks of 32,
    and where those do not fill them either they stay as they are. What has one axis is float32, and so are routers and tables of positions.
    """

    name = "gguf"
    asked = True

    def __init__(self, model: Model, script: Script):
        super().__init__(model, script)
        if importlib.util.find_spec("gguf") is None:
            raise SettingError("target gguf: the package gguf must be installed, is not. Run: pip install 'modicum[gguf]'.")
        row = row_of(type(model.module))
        if row is None:
            raise ModelError(
                f"{model.name}: target gguf: must be of an architecture that is known there, {type(model.module).__name__} is none. "
                "Pass --target transformers or modicum."
            )
        self.row: Architecture = row
        self._last: File | None = None
        self._dropped: frozenset[str] = frozenset()
        check(model, row, self._text(model.config))
        self._require_whole()
        self.words = vocabulary(model, self._table.shape[0])
        self._note(*self.words.notes)
        if (seen := window(row, self._text(model.config))) is not None:
            self._note(f"llama.cpp lets every block see the whole text, this model's see {seen} tokens: the file's context ends there")
        self.layout({}, {}, frozenset())

    def _note(self, *notes: str) -> None:
        self.model.notes += [note for note in notes if note not in self.model.notes]

    @staticmethod
    def _text(config: Any) -> Any:
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def _table(self) -> torch.Tensor:
        return self.model.module.get_input_embeddings().weight  # type: ignore[operator]

    def _require_whole(self) -> None:
        """Raise ``ModelError`` for what a file has no place for."""
        strange = [*persistent_buffers(self.model.stored.module), *self.model.settled.computed]
        if strange:
            raise ModelError(
                f"{self.model.name}: target gguf: must hold weights alone, {strange[0]} is none of the architecture's. Pass --target modicum."
            )
        for name in self.model.weights.names:
            if self.model.weights.dtype(name) not in DENSE:
                raise ModelError(f"{self.model.name}: target gguf: no type of its files is {self.model.weights.dtype(name)}, as {name} is.")

    # What can be held

    @override
    def refusal(self, unit: Unit) -> str:
        if unit.kind not in MATRICES:
            return f"target: {unit.kind}"
        parts = self._parts(unit.parameter, unit.shape)
        if any(Naming.floats(part, unit.shape) for part in parts):
            return "target: float32 there"
        return "target: rows of other lengths than blocks" if unit.shape[1] % TYPES["q8_0"].columns else ""

    @override
    def sites(self) -> list[Site]:
        order = {name: place for place, stage in enumerate(self.script.stages) for name in stage}
        found: dict[str, list[Unit]] = defaultdict(list)
        for unit in sorted(self.model.units.values(), key=lambda unit: order.get(unit.name, len(order))):
            if not self.refusal(unit):
                found[unit.parameter if unit.kind == "expert" else unit.name].append(unit)
        return [self._site(name, tuple(units)) for name, units in found.items()]

    def _site(self, name: str, units: tuple[Unit, ...]) -> Site:
        kind = "experts" if units[0].kind == "expert" else "tied" if units[0].aliases else "unit"
        data_free = next((reason for unit in units if (reason := self.script.data_free(unit))), "")
        return Site(name, kind, units, data_free=data_free)  # type: ignore[arg-type]

    @override
    def adapt(self, site: Site, option: Option) -> Option | None:
        fitted = self.option_for(site, option)
        if fitted is None or len(fitted.steps) > 1:
            return None
        if not fitted.steps:
            return fitted
        (step,) = fitted.steps
        if isinstance(step, SiteCutter):
            plain = site.kind == "cut" and all(unit.kind in ("linear", "conv1d") for unit in site.units)
            return Option((dataclasses.replace(step, multiple=_step(len(site.axes[-1].groups))),)) if plain else None
        return self._typed(site, step) if isinstance(step, GgmlMethod) else None

    @override
    def against(self, site: Site, option: Option) -> str:
        if reason := super().against(site, option):
            return reason
        other = next((step.key().rpartition("/")[2] for step in option.steps if not isinstance(step, GgmlMethod)), "")
        return f"whose files hold types of llama.cpp, such as 'ggml type=q4_k', and {other} makes none" if other else ""

    def _typed(self, site: Site, step: GgmlMethod) -> Option | None:
        """A type whose blocks fill the rows of a site: this one, or what stands for it where rows are short."""
        widths = [unit.shape[1] for unit in site.units]
        for type in (step.type, _SHORT.get(step.type, step.type)):
            if all(width % TYPES[type].columns == 0 for width in widths):
                return Option((dataclasses.replace(step, type=type),))
        return None

    # Widths of blocks

    @override
    def together(self, cuts: Mapping[str, Site]) -> dict[str, tuple[Site, ...]]:
        """Each cut by itself where the file can say how wide each block is."""
        return {name: (site,) for name, site in cuts.items()} if self._apart else super().together(cuts)

    @cached_property
    def _apart(self) -> bool:
        return bool(self.row.apart) and not any(name.endswith(".bias") for name in self.model.weights.names)

    @override
    def describes(self, cuts: Mapping[str, Incision], dropped: Collection[str] = ()) -> bool:
        return self._numbers(cuts, dropped) is not None or super().describes(cuts, dropped)

    def _numbers(self, cuts: Mapping[str, Incision], dropped: Collection[str]) -> dict[str, list[int]] | None:
        """How wide each block is, by keys of the head; None where the file cannot say that, or no cut asks for it."""
        if not self._apart or not cuts:
            return None
        shapes = remaining_shapes(self.model.stored.module, cuts)
        told = {part.name: shape for name, shape in shapes.items() if name in self.model.weights.names for part in self._parts(name, shape)}
        left = [place for place, block in enumerate(self.model.blocks) if block not in dropped]
        return numbers(told, left, head_width(self._text(self.model.config)))

    def _told(self, forms: Mapping[str, Form], dropped: frozenset[str]) -> Architecture:
        """The row that the head is written by: with numbers for each block where those differ."""
        found = self._numbers(self.incisions(forms) or {}, dropped)
        if found is None or all(len(set(each)) == 1 for each in found.values()):
            return self.row
        keys: dict[str, Key] = {key: lambda config, each=each: each for key, each in found.items()}  # type: ignore[misc]
        return dataclasses.replace(self.row, name=self.row.apart, keys={**self.row.keys, **keys})

    @override
    def shaped_config(self, forms: Mapping[str, Form], dropped: frozenset[str]) -> Any:
        """The config that cuts leave; where blocks differ, which only the file says, as it was before them."""
        return super().shaped_config({} if self._told(forms, dropped) is not self.row else forms, dropped)

    # Names and bytes

    def _naming(self, dropped: frozenset[str]) -> Naming:
        blocks = len(self.model.blocks) - len(dropped)
        return Naming(self.row, self._text(self.model.config), blocks, self.model.name)

    @cached_property
    def _whole(self) -> Naming:
        return self._naming(frozenset())

    def _parts(self, parameter: str, shape: tuple[int, ...]) -> list[Part]:
        return self._whole.parts(parameter, shape)

    def _type(self, part: Part, form: Form) -> str:
        inner = inside(form)
        if isinstance(inner, Ggml):
            return inner.type
        return "f32" if Naming.floats(part, inner.shape) else DENSE[inner.dtype]

    def _size(self, part: Part, form: Form) -> int:
        """Bytes of the rows of a unit that a part holds."""
        rows, columns = inside(form).shape
        rows = rows if part.rows is None else len(part.rows)
        type = self._type(part, form)
        return rows * (TYPES[type].row_bytes(columns) if type in TYPES else columns * (4 if type == "f32" else 2))

    @override
    def unit_entries(self, unit: Unit, form: Form) -> Entries:
        return {part.name: (torch.uint8, (self._size(part, form),)) for part in self._parts(unit.parameter, inside(form).shape)}

    @override
    def unit_bytes(self, unit: Unit, form: Form, digits: int) -> int:
        """Bytes a unit adds to the file; the first expert of a stack has what all share, and what aligns the next tensor."""
        parts = self._parts(unit.parameter, inside(form).shape)
        sizes = [self._size(part, form) for part in parts]
        if unit.expert is None:
            return sum(place_bytes(part.name, 2) + aligned(size) for part, size in zip(parts, sizes)) + self._telling(form, parts)
        if unit.expert > 0:
            return sum(sizes)
        rest = unit.stored_shape[0] - 1
        return sum(place_bytes(part.name, 3) + aligned(size * (rest + 1)) - size * rest for part, size in zip(parts, sizes))

    def _telling(self, form: Form, parts: Sequence[Part]) -> int:
        """The most that the head grows by when it tells of each block: once for each cut, of which the first alone may need it."""
        first = self._apart and isinstance(form, Cut) and parts[0].kind in ("attn_q", "ffn_gate")
        return aligned(len(KEYS) * (8 + 4 * len(self.model.blocks))) + ALIGNMENT if first else 0

    @override
    def fixed_bytes(self, inside: Collection[str], dropped: frozenset[str] = frozenset()) -> int:
        whole = self.layout({}, {}, dropped)
        return whole.nbytes() - sum(
            place_bytes(name, len(tensor.place.shape)) + aligned(tensor.place.nbytes)
            for name, tensor in whole.tensors.items()
            if name in inside
        )

    # The file

    @override
    def layout(self, forms: Mapping[str, Form], biases: Mapping[str, torch.Tensor], dropped: frozenset[str]) -> File:
        if biases:
            raise ModelError(f"{self.model.name}: this target cannot hold biases that compression adds. Pass --target modicum.")
        found, naming, rename = File(), self._naming(dropped), renumbering(dropped)
        gone = {parameter for block in dropped for parameter in self.model.blocks[block].parameters}
        left = {f"{self.model.units[name].module}.bias": form.rows for name, form in forms.items() if isinstance(form, Cut)}
        config = self._text(self.shaped_config(forms, dropped))
        owners: dict[str, list[Unit]] = defaultdict(list)
        for unit in self.model.units.values():
            owners[unit.parameter].append(unit)
        types: list[tuple[str, int]] = []
        for name in (name for name in self.model.weights.names if name not in gone):
            for type, tensor in self._tensors(name, owners[name], forms, left.get(name), naming, renamed(name, rename)):
                found.place(tensor)
                types.append((type, tensor.place.nbytes))
        for name, value in factors(config).items():
            found.place(Tensor(Place(name, tuple(value.shape), 0, value.nbytes), lambda value=value: [value]))  # type: ignore[misc]
        found.values = values(self.model, self._told(forms, dropped), config, self.words, types)
        self._last, self._dropped = found, dropped
        return found

    def _tensors(
        self, name: str, units: Sequence[Unit], forms: Mapping[str, Form], left: torch.Tensor | None, naming: Naming, shown: str
    ) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
        """The tensors that hold a weight, with their types."""
        if units and units[0].kind in MATRICES:
            held = [forms.get(unit.name) or Dense(torch.empty(unit.shape, dtype=unit.dtype, device="meta")) for unit in units]
            for part in naming.parts(shown, inside(held[0]).shape):
                types = {self._type(part, form) for form in held}
                if len(types) > 1:
                    raise ModelError(f"{name}: all experts of a stack must have one type for this target, have {', '.join(sorted(types))}.")
                shape = stored_shape(part, inside(held[0]).shape)
                shape = shape if units[0].expert is None else (len(units), *shape)
                place = Place(part.name, shape, NUMBERS[min(types)], sum(self._size(part, form) for form in held))
                yield min(types), Tensor(place, partial(self._written, units, forms, part))
            return
        shape = tuple(self.model.weights.held(name).shape) if left is None else (int(left.sum()),)
        for part in naming.parts(shown, shape):
            stored = stored_shape(part, shape)
            type = "f32" if Naming.floats(part, stored) else DENSE[self.model.weights.dtype(name)]
            count = torch.Size(stored).numel() * (4 if type == "f32" else 2)
            yield type, Tensor(Place(part.name, stored, NUMBERS[type], count), partial(self._plain, name, forms, part, left))

    def _written(self, units: Sequence[Unit], forms: Mapping[str, Form], part: Part) -> Iterator[torch.Tensor]:
        """What is written of units, one after another."""
        stack = self.model.weights.read(units[0].parameter) if any(unit.name not in forms for unit in units) else None
        for unit in units:
            form = inside(forms[unit.name]) if unit.name in forms else Dense(unit.matrix(stack))  # type: ignore[arg-type]
            yield part.of(form.blocks) if isinstance(form, Ggml) else self._whole.value(part, form.dense())

    def _plain(self, name: str, forms: Mapping[str, Form], part: Part, left: torch.Tensor | None) -> list[torch.Tensor]:
        value = self.dense_value(name, forms)
        return [self._whole.value(part, value if left is None else value[left])]

    @override
    def finish(self, directory: Path, forms: Mapping[str, Form], dropped: frozenset[str]) -> None:
        config = self.shaped_config(forms, dropped)
        config.dtype = self.model.dtype
        save_config(self.model, config, directory)
        save_generation(self.model, directory)
        copy_companions(self.model.directory, directory)

    # Verification

    @override
    def verify(self, directory: Path, forms: Mapping[str, Form], batch: Batch | None = None) -> tuple[nn.Module, dict[str, Any]]:
        assert self._last is not None, "what is verified was laid out before"
        found = compared(directory, self._last)
        module = load_gguf(directory)
        self._require_made(directory, module, forms)
        others: dict[str, Callable[..., tuple[Any, str]]] = {
            "transformers": read_by_transformers, "llama.cpp": partial(run_by_llama_cpp, room=self.room),
        }  # fmt: skip
        heard = {name: ask(directory, module, batch) for name, ask in others.items()}
        told = {"loader": "modicum.load", "format's own reader": "all tensors, to the byte", "tensors compared": found}
        return module, told | {name: said for name, (said, _) in heard.items()} | {
            "events": [event for _, event in heard.values() if event]
        }

    def _require_made(self, directory: Path, module: nn.Module, forms: Mapping[str, Form]) -> None:
        """Raise ``ModelError`` unless every weight that is loaded is the one that was made."""
        rename = renumbering(self._dropped)
        for name, form in forms.items():
            unit = self.model.units[name]
            if isinstance(form, Cut):
                continue
            held = module.get_parameter(renamed(unit.parameter, rename))
            if not torch.equal(unit.matrix(held), form.dense().to(held.dtype)):
                raise ModelError(
                    f"{directory}: a reloaded weight must equal the one that was made, {name} differs. Do not use these files."
                )


def inside(form: Form) -> Form:
    """A form without the rows and columns that a cut took: the file is as narrow."""
    return form.inner if isinstance(form, Cut) else form


def _step(groups: int) -> int:
    """What numbers of channels that remain are a multiple of, so that blocks fill rows as before."""
    return next((step for step in _STEPS if groups % step == 0 and groups >= _FEWEST * step), 1)
