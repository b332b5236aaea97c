"""What plain ``from_pretrained`` loads: compressed-tensors, mixed by ``config_groups``; what it cannot hold stays dense."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.core.method import Method
from modicum.core.option import Option
from modicum.core.unit import Site, Unit
from modicum.data.splits import Batch
from modicum.drop._family import SiteCutter
from modicum.export import bitsandbytes
from modicum.export._family import Entries, Layout
from modicum.export.companions import copy_companions, save_config, save_generation
from modicum.export.configured import Configured
from modicum.export.depth import renamed, renumbering
from modicum.export.initialized import needs_weight, reads
from modicum.export.loaded import dequantized, loaded, rounds_cache
from modicum.export.names import Names
from modicum.export.placing import persistent_buffers
from modicum.export.schemes import Targets, entries, inside, multiplied, quantization, reads_widths, scheme, tensors, unread
from modicum.forms import Blockwise, Cut, Dense, Form
from modicum.models.model import Model
from modicum.models.open import skeleton
from modicum.models.settled import computed_weights
from modicum.quantize._family import Quantizer
from modicum.quantize.activations import Activations
from modicum.quantize.bitsandbytes import Bitsandbytes
from modicum.quantize.float8 import Float8
from modicum.sweep import Script

# Widths whose packing all readers agree on.
_AGREED_BITS = (2, 4, 8)
# Channels that go together where a cut leaves some, the most that divides them and leaves so many lots.
_STEPS, _FEWEST = (64, 32, 16, 8), 8
# From tensors by the module's names to those on disk.
Saved = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


class Transformers(Configured):
    """compressed-tensors directories.

    Rules of the runtimes that load them: units of one module that share an input (q, k, v; gate, up) have one scheme; the experts of the
    whole model have one scheme, and where anything is quantized they are too; grids are symmetric, because the loader gives packed zero
    points the shape of unpacked ones and refuses them; embeddings, tied weights, convolutions and GPT-2's ``Conv1D`` stay dense; groups
    divide the row. Blocks are as wide as the config says: coupled cuts leave the same number of channels, or of heads, in all of them.
    """

    name = "transformers"
    probes = True
    caches = True
    mixes = False  # since Transformers 5.21 not where weights are decoded while they are loaded

    def __init__(self, model: Model, script: Script):
        super().__init__(model, script)
        self.names = Names(model, script)

    # What can be held

    @override
    def refusal(self, unit: Unit) -> str:
        if unit.parameter in self._computed:
            return "target: parametrized"
        if unit.aliases:
            return "target: tied"
        if unit.kind == "embedding":
            return "target: embedding"
        if self.wrong("integer", [unit]) and (unit.kind == "expert" or self.wrong("float8", [unit])):
            return "target: loads otherwise"
        if unit.kind == "expert":
            return "" if unit.module in self.names.experts else "target: expert layout"
        if self._initializes:
            return "target: its initialization needs the weight"
        if unit.shape[0] == 1:
            return "target: one row"
        if unit.module in self._routers:
            return "target: router"
        if unit.name in self.script.uncalled or unit.module in self.script.read or unit.module in self._initialized:
            return "target: weight used directly"  # compression replaces the attribute, and only the module's own forward brings it back
        owner = self.model.module.get_submodule(unit.module)
        return "" if unit.kind == "linear" and type(owner).forward is nn.Linear.forward else f"target: {unit.kind}"

    @override
    def sites(self) -> list[Site]:
        sites: dict[str, list[Unit]] = {}
        for stage in self.script.stages:
            for name in stage:
                unit = self.model.units[name]
                if self.refusal(unit):
                    continue
                parent = unit.module.rpartition(".")[0]
                key = "experts" if unit.kind == "expert" else f"{parent}|{stage[0]}" if len(stage) > 1 else name
                sites.setdefault(key, []).append(unit)
        return [self._site(key, tuple(units)) for key, units in sites.items()]

    def _site(self, key: str, units: tuple[Unit, ...]) -> Site:
        data_free = next((reason for unit in units if (reason := self.script.data_free(unit))), "")
        if key == "experts":
            return Site("experts", "experts", units, data_free=data_free)
        if len(units) == 1:
            return Site(units[0].name, "unit", units, data_free=data_free)
        parent = units[0].module.rpartition(".")[0]
        return Site(f"{parent}.[{','.join(unit.module.rpartition('.')[2] for unit in units)}]", "fused", units, data_free=data_free)

    @override
    def adapt(self, site: Site, option: Option) -> Option | None:
        fitted = self.option_for(site, option)
        if fitted is None:
            return None
        if not fitted.steps:
            return fitted if site.kind != "experts" else None
        step, *after = fitted.steps
        if after:
            return self._with_inputs(site, step, after)
        if isinstance(step, SiteCutter):
            plain = site.kind == "cut" and all(unit.kind == "linear" for unit in site.units)  # an expert's router would keep its rows
            return Option((dataclasses.replace(step, multiple=_step(len(site.axes[-1].groups))),)) if plain else None
        if self._unread(site, step):
            return None
        return Option((dataclasses.replace(step, symmetric=True),)) if isinstance(step, Quantizer) else fitted

    def _unread(self, site: Site, step: Method) -> str:
        """Why loaders do not bring back what a step makes of a site's weights, or an empty string."""
        if reason := unread(step, site.units):
            return reason
        if isinstance(step, Quantizer) and not reads_widths(step.bits):
            return f"whose reader, the compressed-tensors that is installed, takes no codes of {step.bits} bits"
        if site.kind == "experts" and not isinstance(step, Quantizer):
            return "whose readers hold experts in whole numbers alone"
        kind = "float8" if isinstance(step, Float8) else "integer"
        return "whose loader brings other values back" if self.wrong(kind, site.units) else ""

    @override
    def against(self, site: Site, option: Option) -> str:
        fitted = self.option_for(site, option)
        if fitted is None or not fitted.steps or isinstance(fitted.steps[0], SiteCutter):
            return super().against(site, option)
        more = fitted.steps[1:]
        if reason := self._unread(site, fitted.steps[0]):
            return reason
        return "" if all(isinstance(step, Activations) for step in more) else "whose readers take one form of a weight, not several steps"

    def _with_inputs(self, site: Site, step: Method, after: Sequence[Method]) -> Option | None:
        """Codes of weights and of inputs, as far as runtimes multiply them."""
        last, alone = after[-1], self.adapt(site, Option((step,)))
        if len(after) > 1 or not isinstance(last, Activations) or alone is None or site.kind == "experts":
            return None
        if not multiplied(alone.steps[0], last):
            return None
        # Where inputs have other axes than rows and tokens, its loader takes a token's scale over others than runtimes do.
        return alone if any(unit.name in self.script.folded for unit in site.units) else Option((*alone.steps, last))

    @override
    def common(self, option: Option) -> bool:
        return all(step.bits in _AGREED_BITS for step in option.steps if isinstance(step, Quantizer))

    @override
    def mixture(self, options: Iterable[Option]) -> str:
        options = list(options)
        if self._cached and any(isinstance(step, Bitsandbytes) for option in options for step in option.steps):
            return "keys and values that are rounded: a file that bitsandbytes reads says nothing of them"
        return bitsandbytes.mixture(options)

    @override
    def scheme(self, form: Form) -> str:
        return scheme(inside(form))

    @cached_property
    def _routers(self) -> set[str]:
        """Linears that have a row for each expert of a stack beside or below them: runtimes keep them dense."""
        counts: dict[str, int] = {}
        for name, use in self.script.stacks.items():
            counts[name.rpartition(".")[0]] = len(self.model.weights.held(self.model.weights.first[f"{name}.{use.attributes[0]}"]))
        linears = [unit for unit in self.model.units.values() if unit.kind == "linear"]
        return {
            unit.module
            for unit in linears
            for parent, count in counts.items()
            if unit.module.startswith(f"{parent}.") and unit.shape[0] == count
        }

    @cached_property
    def _computed(self) -> set[str]:
        """Settled weights that the class computes of what its files hold, which therefore stay as they were."""
        settled = self.model.settled.computed
        module = skeleton(type(self.model.module), copy.deepcopy(self.model.config)) if settled else nn.Module()
        return {each.name for each in computed_weights(module)}.intersection(settled)

    @cached_property
    def _initializes(self) -> bool:
        return needs_weight(self.model)

    @cached_property
    def _initialized(self) -> set[str]:
        return reads(self.model)

    def pieces(self, unit: Unit) -> list[tuple[str, list[int] | None]]:
        """Modules on disk that hold a unit, with the rows each holds (None for all)."""
        if unit.kind == "expert":
            return [(name.removesuffix(".weight"), rows) for name, rows in self.names.place(unit)]
        return [(self.names.quantized(unit.module, unit.parameter), None)]

    # Bytes and tensors

    @override
    def unit_entries(self, unit: Unit, form: Form) -> Entries:
        found: Entries = {}
        inner = inside(form)
        if isinstance(inner, Dense) and unit.kind != "expert":
            shown = torch.empty(inner.shape, dtype=inner.dtype, device="meta")
            return {name: (inner.dtype, tuple(shown.shape)) for name in self.names.beside({unit.parameter: shown})}
        for module, rows in self.pieces(unit):
            count = inner.shape[0] if rows is None else len(rows)
            found |= {f"{module}.{part}": entry for part, entry in entries(inner, count).items()}
        return found

    def _parts(self, unit: Unit, form: Form) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for module, rows in self.pieces(unit):
            found |= {f"{module}.{part}": tensor for part, tensor in tensors(inside(form), rows).items()}
        return found

    def _renamed_parts(self, unit: Unit, forms: Mapping[str, Form], rename: Mapping[str, str]) -> dict[str, torch.Tensor]:
        return _renamed(self._parts(unit, forms[unit.name]), rename)

    def _renamed_dense(
        self, first: str, forms: Mapping[str, Form], rename: Mapping[str, str], rows: torch.Tensor | None, names: Saved
    ) -> dict[str, torch.Tensor]:
        value = self.dense_value(first, forms)
        return _renamed(names({first: value if rows is None else value[rows]}), rename)

    @override
    def layout(self, forms: Mapping[str, Form], biases: Mapping[str, torch.Tensor], dropped: frozenset[str]) -> Layout:
        if biases:
            raise ModelError(f"{self.model.name}: this target cannot hold biases that compression adds. Pass --target modicum.")
        layout, weights = Layout(), self.model.weights
        rename = renumbering(dropped)
        left = {f"{self.model.units[name].module}.bias": form.rows for name, form in forms.items() if isinstance(form, Cut)}
        gone = {parameter for block in dropped for parameter in self.model.blocks[block].parameters}
        plain = all(isinstance(inside(form), Dense) for form in forms.values())
        names = self.names.on_disk if plain else self.names.beside
        owners: dict[str, list[Unit]] = defaultdict(list)
        for unit in self.model.units.values():
            owners[unit.parameter].append(unit)
        for first in (name for name in weights.names if name not in gone):
            if first in self._computed:
                kept = self.model.settled.sources[first]
                layout.add(_renamed(_entries(names(kept)), rename), partial(_renamed, names(kept), rename))
                continue
            units = owners[first]
            treated = [unit for unit in units if unit.name in forms and not isinstance(forms[unit.name], Dense)]
            if treated and len(treated) != len(units):
                raise ModelError(
                    f"{first}: all experts of a stack must be treated alike for this target, {len(treated)} of {len(units)} are."
                )
            for unit in treated:
                layout.add(_renamed(self.unit_entries(unit, forms[unit.name]), rename), partial(self._renamed_parts, unit, forms, rename))
            if not treated:
                shape = list(weights.held(first).shape)
                if (rows := left.get(first)) is not None:
                    shape[0] = int(rows.sum())
                shown = torch.empty(shape, dtype=weights.dtype(first), device="meta")
                layout.add(
                    _renamed(_entries(names({first: shown})), rename), partial(self._renamed_dense, first, forms, rename, rows, names)
                )
        kept = {name: buffer for name, buffer in persistent_buffers(self.model.stored.module).items() if not Script.home(name, dropped)}
        for name, buffer in _renamed(names(kept), rename).items():
            layout.add({name: (buffer.dtype, tuple(buffer.shape))}, partial(dict, {name: buffer}))
        return layout

    # What stands beside

    @override
    def finish(self, directory: Path, forms: Mapping[str, Form], dropped: frozenset[str]) -> None:
        self.describe(directory, forms, dropped)
        save_generation(self.model, directory)
        copy_companions(self.model.directory, directory)

    @override
    def describe(self, directory: Path, forms: Mapping[str, Form], dropped: frozenset[str]) -> None:
        config = copy.deepcopy(self.shaped_config(forms, dropped))
        config.dtype = self.model.dtype
        save_config(self.model, config, directory)
        quantized = self._quantization(forms, renumbering(dropped))
        if quantized is not None:
            path = directory / "config.json"
            body = json.loads(path.read_text(encoding="utf-8"))
            body["quantization_config"] = quantized
            path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _quantization(self, forms: Mapping[str, Form], rename: Mapping[str, str]) -> dict[str, Any] | None:
        experts: dict[str, list[str]] = defaultdict(list)
        modules: dict[str, list[str]] = defaultdict(list)
        for name, form in ((name, inside(form)) for name, form in forms.items()):
            unit = self.model.units[name]
            if isinstance(form, Dense):
                continue
            if unit.kind == "expert":
                experts[scheme(form)] += [renamed(module, rename) for module, _ in self.pieces(unit)]
            else:
                modules[scheme(form)].append(renamed(unit.module, rename))
        if any(isinstance(inside(form), Blockwise) for form in forms.values()):
            every = {renamed(name, rename): module for name, module in self.model.module.named_modules()}
            treated = {name for named in modules.values() for name in named}
            return bitsandbytes.quantization({name: inside(form) for name, form in forms.items()}, every, treated, self.model.dtype)
        names = {renamed(name, rename) for name, _ in self.model.module.named_modules()}
        prefix = getattr(self.model.module, "base_model_prefix", "")
        ignored = self._ignored({name for named in modules.values() for name in named}, rename)
        return quantization(experts, modules, Targets(names, prefix), ignored, self._cached)

    @property
    def _cached(self) -> bool:
        """Whether keys and values are rounded."""
        return any(name.endswith(".k_scale") for name, _ in self.model.module.named_buffers())

    def _ignored(self, treated: set[str], rename: Mapping[str, str]) -> list[str]:
        linears = [unit for unit in self.model.units.values() if unit.kind == "linear"]
        names = {alias.removesuffix(".weight") for unit in linears for alias in (unit.parameter, *unit.aliases)}
        names |= {alias.removesuffix(".weight") for unit in self.model.units.values() for alias in unit.aliases}
        return sorted({renamed(name, rename) for name in names} - treated)

    # Verification

    @override
    def verify(self, directory: Path, forms: Mapping[str, Form], batch: Batch | None = None) -> tuple[nn.Module, dict[str, Any]]:
        cls = type(self.model.module)
        module = loaded(cls, directory)
        told: dict[str, Any] = {"loader": "transformers.from_pretrained", "class": cls.__name__}
        if any(isinstance(inside(form), Blockwise) for form in forms.values()):
            told["bitsandbytes"] = bitsandbytes.versions()
        if self._cached and not rounds_cache(module):
            told["events"] = [
                "kv: this Transformers and compressed-tensors load the scales of keys and values without rounding by them; vLLM does, and so "
                "does what is judged here and modicum.load."
            ]
        return module, told

    @override
    def otherwise(self, directory: Path) -> dict[str, Callable[[], nn.Module]]:
        """Decoded while it is loaded, which Transformers documents for fine-tuning and saving."""
        said = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("quantization_config", {})
        packed = said.get("quant_method") == "compressed-tensors"
        return {"dequantize=True": partial(dequantized, type(self.model.module), directory)} if packed else {}


def _step(groups: int) -> int:
    """What numbers of channels that remain are a multiple of, so that scales of as many columns divide the row as before."""
    return next((step for step in _STEPS if groups % step == 0 and groups >= _FEWEST * step), 1)


def _entries(values: Mapping[str, torch.Tensor]) -> Entries:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in values.items()}


def _renamed(values: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    return {renamed(name, rename): value for name, value in values.items()}
