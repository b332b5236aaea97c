"""Where weights come from: a checkpoint read tensor by tensor, or a module already in memory."""

from __future__ import annotations

import copy
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError, quoted
from modicum.core.finite import finite
from modicum.core.tensorfile import Shards

CPU = torch.device("cpu")
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Weights:
    """Loads and releases the parameters of ``module``; this class serves a module whose parameters are all in memory.

    ``names`` maps each distinct parameter's first name to every name it has: tied parameters are one. Loaded parameters are on ``device``; what is
    read is in the computer's own memory.
    """

    lazy = False

    def __init__(self, module: nn.Module, device: torch.device = CPU):
        self.module, self.device = module, device
        self._here: dict[str, torch.Tensor] = {}  # what is loaded elsewhere
        by_identity: dict[int, list[str]] = defaultdict(list)
        self._homes: dict[str, tuple[nn.Module, str]] = {}
        for prefix, owner in module.named_modules():
            for attribute, parameter in owner._parameters.items():
                if parameter is not None:
                    name = f"{prefix}.{attribute}" if prefix else attribute
                    by_identity[id(parameter)].append(name)
                    self._homes[name] = (owner, attribute)
        self.names: dict[str, tuple[str, ...]] = {names[0]: tuple(names) for names in by_identity.values()}
        self.first: dict[str, str] = {name: names[0] for names in self.names.values() for name in names}

    def over(self, module: nn.Module) -> Weights:
        """The same source of values for another instance of the module."""
        other = Weights(module, self.device)
        other._here = dict(self._here)
        return other

    def on(self, module: nn.Module, device: torch.device) -> Weights:
        """The same values for another instance of the module, loaded to ``device``; its buffers are put there now."""
        for owner in module.modules():
            owner._buffers.update({name: buffer.to(device) for name, buffer in owner._buffers.items() if buffer is not None})
        other = self.over(module)
        other.device = device
        return other

    def held(self, name: str) -> torch.Tensor:
        """The parameter as the module holds it now, on ``meta`` where it is not loaded."""
        owner, attribute = self._homes[name]
        parameter = owner._parameters[attribute]
        assert parameter is not None
        return parameter.detach()

    def dtype(self, name: str) -> torch.dtype:
        """Dtype in which the parameter is stored."""
        return self.held(name).dtype

    def read(self, name: str) -> torch.Tensor:
        """One parameter's value, whether loaded or not."""
        return self._here.get(self.first[name], self.held(name)).to(CPU)

    @property
    def home(self) -> torch.device:
        """Where the parameters lie while nothing is loaded."""
        return CPU if self.lazy else next((self.held(name).device for name in self.names), CPU)

    def load(self, names: Iterable[str]) -> None:
        """Put the named parameters into the module."""
        for name in names:
            if self.held(name).device != self.device:
                self._here[self.first[name]] = self.held(name)
                self.put(name, self.held(name).to(self.device))

    def release(self, names: Iterable[str]) -> None:
        """Free the named parameters, if they can be read again."""
        for name in names:
            if (value := self._here.pop(self.first[name], None)) is not None:
                self.put(name, value)

    def put(self, name: str, value: torch.Tensor) -> None:
        """Set a parameter under all of its names."""
        parameter = nn.Parameter(value, requires_grad=False)
        for alias in self.names[self.first[name]]:
            owner, attribute = self._homes[alias]
            owner._parameters[attribute] = parameter


class CheckpointWeights(Weights):
    """Parameters on the ``meta`` device that are read from safetensors shards when loaded.

    Names and layouts on disk are mapped to those of the module by Transformers' own conversion tables (stacked experts, renamed, split
    or transposed tensors), one conversion at a time.
    """

    lazy = True

    def __init__(self, module: nn.Module, shards: Shards, device: torch.device = CPU):
        super().__init__(module, device)
        self.shards = shards
        self._sources: dict[str, tuple[Any, list[tuple[str, str]]]] = {}  # conversion → its converter, (key on disk, pattern)
        self._made_by: dict[str, str] = {}  # parameter → conversion that makes it
        self._made: dict[str, tuple[int, ...]] = {}  # parameter or buffer → its shape as a conversion makes it
        self._dtypes: dict[str, torch.dtype] = {}
        self._latest: tuple[str, dict[str, torch.Tensor]] = ("", {})
        self._finite: set[str] = set()
        self.notes: list[str] = []
        self.unused = self._index()
        self._untie()
        self._check()
        self._cast()

    @override
    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[self.first[name]]

    @override
    def over(self, module: nn.Module) -> CheckpointWeights:
        return CheckpointWeights(module, self.shards, self.device)

    def _index(self) -> list[str]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key

        mapping: list[Any] = get_model_conversion_mapping(cast(Any, self.module))
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        state = {**dict(self.module.named_parameters(remove_duplicate=False)), **dict(self.module.named_buffers())}
        for key in sorted(self.shards.names()):
            target, pattern = rename_source_key(key, renamings, converters, getattr(self.module, "base_model_prefix", None), state)
            self._sources.setdefault(target, (by_pattern.get(pattern or ""), []))[1].append((key, pattern or ""))
        unused = []
        for target, (_, sources) in self._sources.items():
            made = {name: shape for name, shape in self._shapes(target).items() if name in state}
            self._made_by.update(dict.fromkeys(made, target))
            self._made.update(made)
            unused += [] if made else [key for key, _ in sources]
        ignored = getattr(self.module, "_keys_to_ignore_on_load_unexpected", None) or []
        return [key for key in unused if not any(re.search(pattern, key) for pattern in ignored)]

    def _untie(self) -> None:
        """Part what the config calls one weight and the files hold as several: Transformers loads what is stored."""
        apart = []
        for names in self.names.values():
            stored = [name for name in names if name in self._made_by]
            apart += [name for name in stored[1:] if not self._equal(stored[0], name)]
        for name in apart:
            owner, attribute = self._homes[name]
            owner._parameters[attribute] = nn.Parameter(torch.empty(self._made[name], device="meta"), requires_grad=False)
            self.notes.append(f"{name}: the config says it is tied, the files hold another value; it is kept as it is stored")
        if apart:
            super().__init__(self.module, self.device)
            config = getattr(self.module, "config", None)
            for part in {
                id(part): part for part in (config, getattr(config, "get_text_config", lambda: None)()) if part is not None
            }.values():
                part.tie_word_embeddings = False

    def _equal(self, one: str, other: str) -> bool:
        """Whether two stored weights are one and the same."""
        if self._made_by[one] == self._made_by[other]:
            return True
        first, second = (self._made_value(name) for name in (one, other))
        return first.shape == second.shape and torch.equal(first, second.to(first.dtype))

    def _made_value(self, name: str) -> torch.Tensor:
        target = self._made_by[name]
        return self.shards.read(self._sources[target][1][0][0]) if self._sources[target][0] is None else self._convert(target)[name]

    def _cast(self) -> None:
        """Take floating weights in the dtype in which Transformers loads them: the config's, else that of the first name in order."""
        floating = {name: dtype for name, dtype in self._dtypes.items() if dtype in _WEIGHT_DTYPES}
        chosen: Any = getattr(getattr(self.module, "config", None), "dtype", None)
        if not isinstance(chosen, torch.dtype):
            chosen = floating[min(floating)] if floating else torch.float32
        other = [name for name, dtype in floating.items() if dtype != chosen and not self._precise(name, chosen)]
        for name in other:
            self._dtypes[name] = chosen
            if self.held(name).device.type == "meta":
                self.put(name, torch.empty_like(self.held(name), dtype=chosen))
        if other:
            self.notes.append(
                f"{len(other)} weights are stored in another dtype than {str(chosen)[6:]}, in which the model is loaded, among them {other[0]}"
            )

    def _precise(self, name: str, chosen: torch.dtype) -> bool:
        """Whether the class asks for float32 in a weight, whatever the rest is in."""
        always = getattr(self.module, "_keep_in_fp32_modules_strict", None) or []
        half = getattr(self.module, "_keep_in_fp32_modules", None) or []
        return any(re.search(rf"(^|\.){pattern}(\.|$)", name) for pattern in [*always, *(half if chosen == torch.float16 else [])])

    def _check(self) -> None:
        where = self.shards.directory
        for first, names in self.names.items():
            source = next((name for name in names if name in self._made_by), None)
            if source is None:
                raise ModelError(
                    f"{where}: must hold the weight {first}, which no shard has. Fetch the checkpoint again or check its config."
                )
            self._made_by[first] = self._made_by[source]
            self._check_shape(source, self.held(first))
            sources = self._sources[self._made_by[source]][1]
            self._dtypes[first] = dtype = self.shards.entry(sources[0][0]).dtype
            if self.held(first).is_floating_point() and dtype not in _WEIGHT_DTYPES:
                raise ModelError(f"{where}: {first} must be stored in float16, bfloat16, float32 or float64, is {dtype}. Dequantize it.")
            if self.held(first).is_floating_point() and self.held(first).device.type == "meta":
                self.put(first, torch.empty_like(self.held(first), dtype=dtype))  # a model may look at its dtype before it is loaded

    def _check_shape(self, name: str, held: torch.Tensor) -> None:
        wanted, has = tuple(held.shape), self._made[name]
        if has != wanted:
            raise ModelError(f"{self.shards.directory}: {name} must have shape {wanted} by the config, has {has}. Check the config.")

    def _shapes(self, target: str) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters that a conversion makes, or of the one stored as it is."""
        converter, sources = self._sources[target]
        if converter is None:
            return {target: self.shards.entry(sources[0][0]).shape}
        try:
            return {name: tuple(value.shape) for name, value in self._convert(target, meta=True).items()}
        except Exception as error:  # whatever a conversion raises at shapes it was not made for
            raise ModelError(
                f"{self.shards.directory}: {target} cannot be made of what is stored ({quoted(error)}). Fetch it again."
            ) from None

    def _convert(self, target: str, *, meta: bool = False) -> dict[str, torch.Tensor]:
        from transformers.core_model_loading import dot_natural_key

        converter, sources = self._sources[target]
        fresh = copy.deepcopy(converter)
        for key, pattern in sorted(sources, key=lambda pair: dot_natural_key(pair[0])):
            entry = self.shards.entry(key)
            value = torch.empty(entry.shape, dtype=entry.dtype, device="meta") if meta else self.shards.read(key)
            fresh.add_tensor(target, key, pattern, lambda value=value: value)
        made = fresh.convert(target, model=self.module, config=getattr(self.module, "config", None))
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _value(self, first: str) -> torch.Tensor:
        target = self._made_by[first]
        if self._sources[target][0] is None:
            value = self.shards.read(self._sources[target][1][0][0])
        else:
            if self._latest[0] != target:
                self._latest = (target, self._convert(target))
            value = next(self._latest[1][name] for name in self.names.get(first, (first,)) if name in self._latest[1]).contiguous()
        return value.to(self._dtypes[first]) if first in self._dtypes else value

    @override
    def read(self, name: str) -> torch.Tensor:
        held = self.held(name)
        return held.to(CPU) if held.device.type != "meta" else self._value(self.first[name])

    @override
    def load(self, names: Iterable[str]) -> None:
        for name in names:
            if self.held(name).device.type == "meta":
                value = self._value(self.first[name])
                if name not in self._finite:
                    require_finite(name, value)
                    self._finite.add(name)
                self.put(name, value.to(self.device))
        self._latest = ("", {})

    @override
    def release(self, names: Iterable[str]) -> None:
        for name in names:
            self.put(name, torch.empty_like(self.held(name), device="meta"))

    def stored(self) -> Iterator[tuple[str, str, bool]]:
        """Of every tensor stored: its name on disk, the module's name for it, and whether a conversion makes it."""
        for target, (converter, sources) in self._sources.items():
            yield from ((key, target, converter is not None) for key, _ in sources)

    def converted(self, name: str) -> bool:
        """Whether a parameter is stored in another layout than it is used in."""
        target = self._made_by.get(name)
        return target is not None and self._sources[target][0] is not None

    def load_buffers(self) -> None:
        """Fill the persistent buffers (batch statistics, position tables), which are small and stay."""
        for name, buffer in self.module.named_buffers():
            if name in self._made_by:
                self._check_shape(name, buffer)
                buffer.copy_(self._value(name))


def require_finite(name: str, value: torch.Tensor) -> None:
    """Raise ``ModelError`` where a weight holds NaN or Inf."""
    if value.is_floating_point() and not finite(value):
        raise ModelError(f"{name}: weights must be finite, hold NaN or Inf. Repair the checkpoint.")


@contextmanager
def skeleton_parameters(most: int | None = None) -> Iterator[None]:
    """Inside, modules are built with parameters on the ``meta`` device and buffers really computed.

    Raises ``ModelError`` at the first parameter above ``most``: a config's word is no reason to build without end.
    """
    register, count = nn.Module.register_parameter, itertools.count(1)

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if most is not None and next(count) > most:
            raise ModelError(f"{type(self).__name__}: the config asks for far more weights than the checkpoint has. Check the config.")
        register(self, name, param)
        if param is not None and param.device.type != "meta":
            self._parameters[name] = nn.Parameter(torch.empty_like(param, device="meta"), requires_grad=False)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
