"""Weights that modules compute anew at each call: by direction and length, over a norm, under a mask, by a parametrization of one's own.

At inference they are constants: what multiplies is the *effective* weight, so that is what is measured, treated and written. It takes the place of
what computes it, where it is a function of the module's own tensors alone, which is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod

from modicum.core.errors import quoted
from modicum.models.weights import install

# What torch's former ways call the parameters and buffers that they compute a weight of.
_PARAMETERS, _BUFFERS = ("_g", "_v", "_orig"), ("_mask", "_u", "_v")


@dataclass(frozen=True)
class Computed:
    """A weight that its module computes: of which parameters, by what, and the call that puts it there where a hook does it."""

    owner: nn.Module
    prefix: str
    attribute: str
    sources: tuple[nn.Parameter, ...]
    by: str
    hook: Any = None

    @property
    def name(self) -> str:
        """Name of the weight in its module."""
        return f"{self.prefix}.{self.attribute}" if self.prefix else self.attribute

    @property
    def stored(self) -> dict[str, torch.Tensor]:
        """What a saved state has in the weight's place, by name."""
        if self.hook is None:
            chain, lead = self.owner.get_submodule(f"parametrizations.{self.attribute}"), f"parametrizations.{self.attribute}."
            return {f"{self.prefix}.{lead}{name}".lstrip("."): value for name, value in chain.state_dict().items()}
        held = {**self.owner._parameters, **self.owner._buffers}
        names = [self.attribute + ending for ending in {*_PARAMETERS, *_BUFFERS}]
        return {f"{self.prefix}.{name}".lstrip("."): value for name in sorted(names) if (value := held.get(name)) is not None}

    @property
    def pruned(self) -> bool:
        """Whether a mask holds entries at zero."""
        return isinstance(self.hook, BasePruningMethod)

    def value(self) -> torch.Tensor:
        """The weight as a call finds it."""
        if self.hook is not None:
            self.hook(self.owner, ())
        return getattr(self.owner, self.attribute).detach()

    def replace(self, parameter: nn.Parameter) -> None:
        """Put a plain parameter in the weight's place. The class of a parametrized module is shared by its copies, so it stays as it is."""
        if self.hook is None:
            _plain(self.owner, self.attribute)
        else:
            _unhook(self.owner, self.attribute, self.hook)
        install(self.owner, self.attribute, parameter)


def computed_weights(module: nn.Module) -> Iterator[Computed]:
    """Weights that parts of the module compute of parameters of their own."""
    for prefix, owner in list(module.named_modules()):
        for attribute, chain in list(getattr(owner, "parametrizations", {}).items()) if _has_parametrizations(owner) else []:
            if sources := tuple(value for name, value in chain._parameters.items() if name.startswith("original") and value is not None):
                yield Computed(owner, prefix, attribute, sources, " and ".join(_called(part) for part in chain))
        for hook in list(owner._forward_pre_hooks.values()):
            attribute = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
            if isinstance(attribute, str) and attribute not in owner._parameters:
                found = (owner._parameters.get(attribute + ending) for ending in _PARAMETERS)
                if sources := tuple(value for value in found if value is not None):
                    yield Computed(owner, prefix, attribute, sources, _called(hook), hook)


def _has_parametrizations(owner: nn.Module) -> bool:
    chains = owner._modules.get("parametrizations")
    return isinstance(chains, nn.ModuleDict) and all(isinstance(chain, ParametrizationList) for chain in chains.values())


def _called(part: object) -> str:
    return "a pruning mask" if isinstance(part, BasePruningMethod) else type(part).__name__.lstrip("_")


@dataclass
class Settled:
    """What was put in the place of what: by name what computed it, and what of; those that a mask prunes; ``left``: what could not be, and why."""

    computed: dict[str, str] = field(default_factory=dict)
    sources: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    pruned: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What there is to tell."""
        told = [
            f"{name}: is computed by {by}; its effective weight is what is measured, and where the target may hold it, treated and written"
            + (", its pruned entries as zeros" if name in self.pruned else "")
            for name, by in self.computed.items()
        ]
        return told + [f"{name}: is computed anew at each call, from what stays as it is: {why}" for name, why in self.left.items()]


def settle(module: nn.Module) -> Settled:
    """Put every effective weight in the place of what computes it, in a module of ours in evaluation mode."""
    found, shared = Settled(), dict[tuple[int, ...], list[nn.Parameter]]()
    for each in list(computed_weights(module)):
        try:
            value = _tried(module, each)
        except Exception as error:  # whatever code of somebody's own raises
            found.left[each.name] = quoted(error)
            continue
        if isinstance(value, str):
            found.left[each.name] = value
            continue
        found.sources[each.name] = each.stored
        alike = shared.setdefault(tuple(map(id, each.sources)), [])
        parameter = next((known for known in alike if known.dtype == value.dtype and torch.equal(known, value)), None)
        if parameter is None:
            parameter = nn.Parameter(value.clone(), requires_grad=False)
            alike.append(parameter)
        each.replace(parameter)
        found.computed[each.name] = each.by
        found.pruned |= {each.name} if each.pruned else set()
    return found


@torch.no_grad()
def _tried(module: nn.Module, each: Computed) -> torch.Tensor | str:
    """The effective weight, or why there is none: it must be the same twice, and nothing of the module another afterwards."""
    before = _state(module)
    with torch.random.fork_rng():
        value = each.value().clone()
        torch.rand(1)  # other draws, where it draws
        again = each.value()
    if not value.is_floating_point() or value.layout != torch.strided:
        return "it is no plain matrix of floating numbers"
    if value.shape != again.shape or not torch.equal(value, again):
        return "it is another weight each time"
    if any(version != before.get(name, version) for name, version in _state(module).items()):
        return "computing it changes the module"
    return value


def _state(module: nn.Module) -> dict[str, int]:
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: value._version for name, value in tensors if not value.is_inference()}


def _plain(owner: nn.Module, attribute: str) -> None:
    chains, cls = owner._modules["parametrizations"], type(owner)
    assert isinstance(chains, nn.ModuleDict)
    rest = {name: chain for name, chain in chains.items() if name != attribute}
    if rest:
        kept = {name: value for name, value in vars(cls).items() if name not in (attribute, "__dict__", "__weakref__")}
        owner._modules["parametrizations"] = nn.ModuleDict(rest)
        owner.__class__ = type(cls.__name__, cls.__bases__, kept)
    else:
        del owner._modules["parametrizations"]
        owner.__class__ = cls.__bases__[0]


def _unhook(owner: nn.Module, attribute: str, hook: Callable) -> None:
    for names, endings in ((owner._parameters, _PARAMETERS), (owner._buffers, _BUFFERS)):
        for ending in endings:
            names.pop(attribute + ending, None)
    vars(owner).pop(attribute, None)
    for hooks in (owner._forward_pre_hooks, owner._state_dict_hooks, owner._load_state_dict_pre_hooks):
        for key, value in list(hooks.items()):
            if hook in (value, getattr(getattr(value, "hook", value), "fn", None)):
                del hooks[key]


def make_room(module: nn.Module, settled: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Where the module computes weights that were settled before it was written, a plain parameter of the ``shapes`` that are written."""
    for each in list(computed_weights(module)):
        if each.name in settled and each.name in shapes:
            source = each.sources[0]
            each.replace(nn.Parameter(source.new_empty(shapes[each.name]), requires_grad=False))
