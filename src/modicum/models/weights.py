"""Where weights come from: a checkpoint read tensor by tensor, or a module already in memory."""

from __future__ import annotations

import copy
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError, listed, quoted
from modicum.core.finite import finite
from modicum.core.tensorfile import Shards
from modicum.models.plain import FLOATS, kept_wide, parted, tied_pairs, untie
from modicum.models.unsaved import unsaved

CPU = torch.device("cpu")


class Weights:
    """Loads and releases the parameters of ``module``; this class serves a module whose parameters are all in memory.

    ``names`` maps each distinct parameter's first name to every name it has: tied parameters are one. Loaded parameters are on ``device``, those
    of a dtype among ``turned`` in the one it gives; what is read is in the computer's own memory, and as it is stored.
    """

    lazy = False
    turned: Mapping[torch.dtype, torch.dtype] = MappingProxyType({})

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
        other._here, other.turned = dict(self._here), self.turned
        return other

    def on(self, module: nn.Module, device: torch.device, turned: Mapping[torch.dtype, torch.dtype] | None = None) -> Weights:
        """The same values for another instance of the module, loaded to ``device`` and in the dtypes of ``turned``; its buffers are put there now."""
        other = self.over(module)
        other.device, other.turned = device, self.turned if turned is None else turned
        for owner in module.modules():
            owner._buffers.update({name: other._placed(owner, name, value) for name, value in owner._buffers.items() if value is not None})
        if other.turned:
            other._park()
        return other

    def _placed(self, owner: nn.Module, name: str, buffer: torch.Tensor) -> torch.Tensor:
        """A buffer where and as it is computed with. What was computed wide, such as angles of positions, does not get narrower."""
        dtype = self.turned.get(buffer.dtype, buffer.dtype)
        narrower = dtype.itemsize < buffer.dtype.itemsize and name in owner._non_persistent_buffers_set
        return buffer.to(self.device, buffer.dtype if narrower else dtype)

    def _park(self) -> None:
        """Leave parameters out of the module while they are not loaded: what it sees of them meanwhile has the dtype that it computes in."""
        for name in self.names:
            if not self.lazy:
                self._here.setdefault(name, self.held(name))
            self.put(name, self._absent(name))

    def _absent(self, name: str) -> torch.Tensor:
        """What stands for a parameter that is not loaded: no values, in the dtype that it is computed with."""
        return torch.empty_like(self.held(name), dtype=self.loaded(name), device="meta")

    def held(self, name: str) -> torch.Tensor:
        """The parameter as the module holds it now, on ``meta`` where it is not loaded."""
        return self.parameter(name).detach()

    def parameter(self, name: str) -> nn.Parameter:
        """The very parameter the module holds now."""
        owner, attribute = self._homes[name]
        parameter = owner._parameters[attribute]
        assert parameter is not None
        return parameter

    def dtype(self, name: str) -> torch.dtype:
        """Dtype in which the parameter is stored."""
        return self._here.get(self.first[name], self.held(name)).dtype

    def loaded(self, name: str) -> torch.dtype:
        """Dtype in which the parameter is loaded and computed with."""
        return self.turned.get(self.dtype(name), self.dtype(name))

    def brought(self, value: torch.Tensor) -> torch.Tensor:
        """A value where, and in the dtype in which, it is computed with."""
        return value.to(self.device, self.turned.get(value.dtype, value.dtype))

    def read(self, name: str) -> torch.Tensor:
        """One parameter's value as it is stored, whether loaded or not."""
        return self._here.get(self.first[name], self.held(name)).to(CPU)

    @property
    def home(self) -> torch.device:
        """Where the parameters lie while nothing is loaded."""
        return CPU if self.lazy else next((self._here.get(name, self.held(name)).device for name in self.names), CPU)

    def load(self, names: Iterable[str]) -> None:
        """Put the named parameters into the module."""
        for name in names:
            if self.held(name).device != self.device:
                value = self._here.setdefault(self.first[name], self.held(name))
                self.put(name, value.to(self.device, self.loaded(name)))

    def release(self, names: Iterable[str]) -> None:
        """Free the named parameters, if they can be read again."""
        for name in names:
            if (value := self._here.get(self.first[name])) is None:
                continue
            if not self.turned:
                self._here.pop(self.first[name])
            self.put(name, self._absent(name) if self.turned else value)

    def put(self, name: str, value: torch.Tensor) -> None:
        """Set a parameter under all of its names."""
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        for alias in self.names[self.first[name]]:
            install(*self._homes[alias], parameter)


class CheckpointWeights(Weights):
    """Parameters on the ``meta`` device that are read from safetensors shards when loaded.

    Names and layouts on disk are mapped to those of the module by Transformers' own conversion tables (stacked experts, renamed, split
    or transposed tensors), one conversion at a time. Tied weights that the file holds with values of their own are parted, and each has the
    dtype that Transformers loads it in. ``unused`` and ``ignored``: tensors that the model has no place for, and those of them that its
    class expects and leaves alone. ``notes``: what was done otherwise than the config says. ``adopted``: what stands in the place of values stored.
    """

    lazy = True
    # What is loaded in the place of values, by name, shape and dtype, where they are not to be read.
    stand_in: Callable[[str, tuple[int, ...], torch.dtype], torch.Tensor] | None = None

    def __init__(
        self, module: nn.Module, shards: Shards, device: torch.device = CPU, built: Mapping[str, torch.dtype] | None = None,
        adopted: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ):  # fmt: skip
        super().__init__(module, device)
        self.shards, self.adopted = shards, dict(adopted)
        tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        self._twin = built is not None
        self._built = built or {name: value.dtype for name, value in tensors}
        self.notes: list[str] = []
        self._sources: dict[str, tuple[Any, list[tuple[str, str]]]] = {}  # conversion → its converter, (key on disk, pattern)
        self._made_by: dict[str, str] = {}  # parameter → conversion that makes it
        self._made: dict[str, tuple[int, ...]] = {}  # parameter or buffer → its shape as a conversion makes it
        self._dtypes: dict[str, torch.dtype] = {}
        self._latest: tuple[str, dict[str, torch.Tensor]] = ("", {})
        self._finite: set[str] = set()
        self._wide = kept_wide(module, getattr(getattr(module, "config", None), "dtype", None) or torch.float32)
        self.unused, self.ignored = self._index()
        if apart := self._parted():
            untie(module, apart)
            Weights.__init__(self, module, device)
            self.notes.append(f"{listed(apart)}: tied by the config, kept apart: the checkpoint holds other values for it")
        self._check()

    @override
    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[self.first[name]]

    @override
    def over(self, module: nn.Module) -> CheckpointWeights:
        other = CheckpointWeights(module, self.shards, self.device, self._built, self.adopted)
        other.turned = self.turned
        return other

    def adopt(self, made: Mapping[str, torch.Tensor]) -> None:
        """Take weights of the module that were made of those stored, in their place; they stay in memory."""
        if made:
            Weights.__init__(self, self.module, self.device)
            self.adopted |= {self.first[name]: value for name, value in made.items()}
            self._dtypes |= {name: value.dtype for name, value in self.adopted.items()}
            self.release(self.adopted)

    def _index(self) -> tuple[list[str], list[str]]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

        mapping: list[Any] = get_model_conversion_mapping(cast(Any, self.module))
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        prefix = getattr(self.module, "base_model_prefix", None)
        state = {**dict(self.module.named_parameters(remove_duplicate=False)), **dict(self.module.named_buffers())}
        # In the order of Transformers: some renamings depend on what they have met before.
        for key in sorted(self.shards.names(), key=dot_natural_key):
            target, pattern = rename_source_key(key, renamings, converters, prefix, state)
            if target not in state and key in state:
                target, pattern = rename_source_key(key, [], [], prefix, state)
            self._sources.setdefault(target, (by_pattern.get(pattern or ""), []))[1].append((key, pattern or ""))
        unused = []
        for target, (_, sources) in self._sources.items():
            made = {name: shape for name, shape in self._shapes(target).items() if name in state}
            self._made_by.update(dict.fromkeys(made, target))
            self._made.update(made)
            unused += [] if made else [key for key, _ in sources]
        expected = getattr(self.module, "_keys_to_ignore_on_load_unexpected", None) or []
        ignored = [key for key in unused if any(re.search(pattern, key) for pattern in expected)]
        return [key for key in unused if key not in set(ignored)], ignored

    def _parted(self) -> list[str]:
        """Names of tied weights for which the checkpoint holds another value."""
        pairs, apart = tied_pairs(self.module), []
        for names in self.names.values():
            if sum(name in self._made_by for name in names) > 1:
                apart += parted(pairs, names, self._made_by.__contains__, self._same)
        return apart

    def _same(self, one: str, other: str) -> bool:
        return self._made[one] == self._made[other] and torch.equal(self._made_value(one), self._made_value(other))

    def _check(self) -> None:
        where = self.shards.directory
        other: list[str] = []
        self._dtypes |= {name: value.dtype for name, value in self.adopted.items()}
        for first, names in self.names.items():
            if first in self.adopted:
                continue
            source = next((name for name in names if name in self._made_by), None)
            if source is None and (value := unsaved(self.module, first)) is not None:
                self.adopted[first], self._dtypes[first] = value, value.dtype
                continue
            if source is None:
                raise ModelError(
                    f"{where}: must hold the weight {first}, which no shard has. Fetch the checkpoint again or check its config."
                )
            self._made_by[first] = self._made_by[source]
            self._check_shape(source, self.held(first))
            sources = self._sources[self._made_by[source]][1]
            stored = self.shards.entry(sources[0][0]).dtype
            self._dtypes[first] = dtype = self._loaded(self._made_by[source])
            if self.held(first).is_floating_point() and stored not in FLOATS:
                raise ModelError(f"{where}: {first} must be stored in float16, bfloat16, float32 or float64, is {stored}. Dequantize it.")
            other += [first] if stored != dtype else []
            if not self._twin and self.held(first).is_floating_point() and self.held(first).device.type == "meta":
                self.put(first, torch.empty_like(self.held(first), dtype=dtype))  # a model may look at its dtype before it is loaded
        if other:
            stored = self.shards.entry(self._sources[self._made_by[other[0]]][1][0][0]).dtype
            self.notes.append(
                f"{len(other)} weights are loaded in another dtype than they are stored in, as Transformers does, among them {other[0]}: "
                f"{str(self._dtypes[other[0]])[6:]} for {str(stored)[6:]}"
            )

    def _loaded(self, target: str) -> torch.dtype:
        """The dtype Transformers loads a conversion's tensors in: that of the class, or that of the model as it is built."""
        if target in self.first or target in dict(self.module.named_buffers()):
            return self._wide(target) or self._built[target]
        return self.shards.entry(self._sources[target][1][0][0]).dtype

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
            value = torch.empty(entry.shape, dtype=entry.dtype, device="meta") if meta else self.shards.read(key).to(self._loaded(target))
            fresh.add_tensor(target, key, pattern, lambda value=value: value)
        made = fresh.convert(target, model=self.module, config=getattr(self.module, "config", None))
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _value(self, first: str) -> torch.Tensor:
        if first in self.adopted:
            return self.adopted[first]
        names = self.names.get(first, (first,))
        return self._made_value(next(name for name in names if name in self._made))

    def _made_value(self, name: str) -> torch.Tensor:
        """What the checkpoint holds for a parameter or buffer, as Transformers loads it."""
        target = self._made_by[name]
        if self._sources[target][0] is None:
            return self.shards.read(self._sources[target][1][0][0]).to(self._loaded(target))
        if self._latest[0] != target:
            self._latest = (target, self._convert(target))
        return self._latest[1][name].contiguous()

    @override
    def read(self, name: str) -> torch.Tensor:
        held = self.held(name)
        return held.to(CPU, self.dtype(name)) if held.device.type != "meta" else self._value(self.first[name])

    @override
    def load(self, names: Iterable[str]) -> None:
        for name in names:
            if self.held(name).device.type == "meta":
                if self.stand_in is not None:
                    self.put(name, self.stand_in(name, tuple(self.held(name).shape), self.loaded(name)))
                    continue
                value = self._value(self.first[name])
                if name not in self._finite:
                    require_finite(name, value)
                    self._finite.add(name)
                self.put(name, value.to(self.device, self.loaded(name)))
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
                if buffer.is_meta:  # made like a parameter, which has no memory yet
                    owner, _, attribute = name.rpartition(".")
                    buffer = self.module.get_submodule(owner)._buffers[attribute] = torch.empty_like(buffer, device="cpu")
                buffer.copy_(self._value(name))


def install(owner: nn.Module, attribute: str, parameter: nn.Parameter) -> None:
    """Put a parameter into a module, and into the list that recurrent modules keep beside and really compute with."""
    owner._parameters[attribute] = parameter
    names = getattr(owner, "_flat_weights_names", None)
    if names is not None:
        owner._flat_weights = [getattr(owner, name, None) for name in names]  # type: ignore[assignment]


def require_finite(name: str, value: torch.Tensor) -> None:
    """Raise ``ModelError`` where a weight holds NaN or Inf."""
    if value.is_floating_point() and not finite(value):
        raise ModelError(f"{name}: weights must be finite, hold NaN or Inf. Repair the checkpoint.")


@contextmanager
def skeleton_parameters(most: int | None = None) -> Iterator[None]:
    """Inside, modules are built with parameters on the ``meta`` device and buffers really computed.

    Raises ``ModelError`` at the first parameter above ``most``: a config's word is no reason to build without end.
    """
    register, reset, count = nn.Module.register_parameter, nn.Linear.reset_parameters, itertools.count(1)

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if most is not None and next(count) > most:
            raise ModelError(f"{type(self).__name__}: the config asks for far more weights than the checkpoint has. Check the config.")
        register(self, name, param)
        if param is not None and param.device.type != "meta":
            shown = nn.Parameter(torch.empty_like(param, device="meta"), requires_grad=False)
            shown._is_hf_initialized = True  # type: ignore[attr-defined]  # Transformers then draws no numbers for it, which costs seconds
            self._parameters[name] = shown

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    nn.Linear.reset_parameters = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        nn.Linear.reset_parameters = reset  # type: ignore[method-assign]
