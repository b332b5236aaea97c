"""Weights of a module made of trained numbers for as long as a context is open; nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from modicum.core.errors import ModelError
from modicum.core.parametrization import Parametrization, Revision, Start, State, Step
from modicum.core.schedule import Schedule
from modicum.core.unit import Stats, Unit
from modicum.delta import Beside, Delta
from modicum.delta.beside import fingerprint
from modicum.forms import Base, Dense, Form
from modicum.models.structure import find_blocks
from modicum.models.weights import Weights
from modicum.sweep.ranks import Ranks
from modicum.sweep.stage import seed_of
from modicum.train.asides import Standing, attach, begun
from modicum.train.computed import Computed
from modicum.train.finding import Plan, planned

_AT_HOME = "forward"


@dataclass
class Place:
    """One unit in training: its method, the form that it stands on, and its state."""

    unit: Unit
    method: Parametrization
    base: Form | None
    state: State
    dtype: torch.dtype


class Trained:
    """``with trained(model, plan) as t``: the model computes with parametrized weights, and ``t`` has what is trained.

    Every read of a planned parameter, by whichever module, gives the weight that its method makes; the module's own parameters stay what they are and
    ask for no gradient. A linear layer whose method has a cheaper ``product``, or does something to ``inputs``, is called in that way.
    """

    def __init__(
        self, module: nn.Module, plan: Plan, *, seed: int = 0, total: int = 1,
        forms: Mapping[str, Form] | None = None, stats: Mapping[str, Stats] | None = None, scratch: bool = False,
        gradients: Mapping[str, torch.Tensor] | None = None,
    ):  # fmt: skip
        self.module, self.step, self.seed = module, Step(0, total), seed
        self.places: dict[str, Place] = {}
        self._gradients: dict[str, torch.Tensor] = {}
        self._homes: dict[str, str] | None = None
        self._asked: dict[nn.Parameter, bool] = {}
        self._stack = ExitStack()
        chosen = planned(module, plan)
        common = self._common(chosen.units)
        for name, (unit, method) in chosen.units.items():
            known = (stats or {}).get(name), (gradients or {}).get(name)
            self.places[name] = self._begun(unit, method, (forms or {}).get(name), *known, common[str(method)], scratch)
        self.asides, self.estimator, self._schedules = begun(module, chosen.asides, seed), chosen.estimator, chosen.schedules
        self.wake()

    def _common(self, chosen: Mapping[str, tuple[Unit, Parametrization]]) -> dict[str, State | None]:
        shapes: dict[str, dict[str, tuple[int, int]]] = {}
        methods: dict[str, Parametrization] = {}
        for name, (unit, method) in chosen.items():
            shapes.setdefault(str(method), {})[name] = unit.shape
            methods[str(method)] = method
        found = {}
        for text, method in methods.items():
            seed = seed_of(self.seed, text)
            state = method.common(shapes[text], torch.Generator().manual_seed(seed), seed)
            found[text] = None if state is None else _leaves(state)
        return found

    def _begun(
        self, unit: Unit, method: Parametrization, form: Form | None, stats: Stats | None, gradient: torch.Tensor | None, common: State | None,
        scratch: bool,
    ) -> Place:  # fmt: skip
        seed = seed_of(self.seed, unit.name)
        beneath = form or Dense(unit.matrix(self.module.get_parameter(unit.parameter).detach()))
        weight = None if scratch and method.draws else beneath.dense().float()
        start = Start(
            unit=unit.name, shape=unit.shape, weight=weight, seed=seed, stats=stats, common=common,
            chance=torch.Generator().manual_seed(seed), base=Base(unit.shape, beneath.dtype, unit.name), sides=unit.sides, stored=form,
            gradient=gradient,
        )  # fmt: skip
        return Place(unit, method, beneath if method.relative else None, _leaves(method.begin(start)), beneath.dtype)

    def __enter__(self) -> Trained:
        try:
            self._install()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, each tensor once."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by the unit's name and the tensor's, or the method's where several units share it."""
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for name, place in self.places.items():
            for state, owner in ((place.state, name), (place.state.common, str(place.method))):
                for part, tensor in state.trained.items() if state is not None else ():
                    assert isinstance(tensor, nn.Parameter)
                    found.setdefault(id(tensor), (f"{owner}: {part}", tensor))
        beside = {f"{each.owner}: {part}": tensor for each in self.asides for part, tensor in each.state.trained.items()}
        return {**dict(found.values()), **beside}  # type: ignore[dict-item]

    def by_rate(self) -> dict[float, list[nn.Parameter]]:
        """What is trained, by the learning rate of its own method, each tensor once."""
        found: dict[float, dict[int, nn.Parameter]] = {}
        held = [(place.method, state) for place in self.places.values() for state in (place.state, place.state.common) if state is not None]
        for method, state in [*held, *((each.method, each.state) for each in self.asides)]:
            found.setdefault(method.rate, {}).update({id(tensor): tensor for tensor in state.trained.values()})  # type: ignore[misc]
        return {rate: list(tensors.values()) for rate, tensors in found.items()}

    @property
    def count(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def weight(self, name: str) -> torch.Tensor:
        """The weight (rows, columns) of a unit as it stands, in the dtype that is stored; differentiable."""
        place = self.places[name]
        base = None if place.base is None else place.base.dense().float()
        return place.method.weight(base, place.state, self.step).to(place.dtype)

    def penalty(self) -> torch.Tensor | None:
        """What the methods add to the loss, or None."""
        found = [method.penalty(states, self.step) for method, states in self._by_method()]
        there = [each for each in found if each is not None]
        return torch.stack(there).sum() if there else None

    def meet(self, ranks: Ranks) -> None:
        """Sum gradients, those of whole weights too, with what other ``ranks`` have found; to be called by all of them before an update."""
        if ranks.count > 1:
            for name, parameter in self.named_parameters().items():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    ranks.sum(name, parameter.grad)
            self._gradients = ranks.union("watched", self._gradients)

    def revise(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """To be called after each update: counts it, and lets methods move what they train; an ``optimizer``'s moments move along.

        A tensor that keeps its shape stays the same object. One that does not is another, which takes its place in the optimizer: ask
        ``parameters`` anew.
        """
        self.step = replace(self.step, number=self.step.number + 1)
        for method, states in self._by_method():
            seen = {name: self._gradients[name] for name in states if name in self._gradients}
            budget = sum(tensor.numel() for state in states.values() for tensor in state.trained.values())
            with torch.no_grad():
                revision = method.revise(states, seen, budget, self.step)
            if revision is not None:
                self._take(revision, optimizer)
        self._gradients.clear()
        self.wake(optimizer)

    def wake(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Let move what the plan's schedules say of the next update, and rest what they do not: without gradients or an ``optimizer``'s moments."""
        for schedule in dict.fromkeys(self._schedules.values()):
            mine = {name for name, each in self._schedules.items() if each == schedule and name in self.places}
            active = schedule.active({name: block for name, block in self._blocks().items() if name in mine}, self.step, self.seed)
            for name in mine:
                for tensor in self.places[name].state.trained.values():
                    tensor.requires_grad_(name in active)
                    if name not in active:
                        tensor.grad = None
                        if optimizer is not None:
                            optimizer.state.pop(tensor, None)

    @property
    def watched(self) -> bool:
        """Whether a method wants to see gradients of whole weights after the next update."""
        following = replace(self.step, number=self.step.number + 1)
        return any(method.watches(following) for method in {place.method for place in self.places.values()})

    @property
    def moving(self) -> Parametrization | Schedule | None:
        """What changes what is trained on the way: a method that revises it, or a schedule; None where nothing does."""
        methods = (place.method for place in self.places.values())
        revising = (method for method in methods if type(method).revise is not Parametrization.revise)
        return next(revising, next(iter(self._schedules.values()), None))

    def _blocks(self) -> dict[str, str]:
        """The block that each unit lies in, "" outside of all, in the order of the model's parameters."""
        if self._homes is None:
            inside = {name: block.name for block in find_blocks(self.module, Weights(self.module)).values() for name in block.parameters}
            order = {name: at for at, (name, _) in enumerate(self.module.named_parameters())}
            units = sorted((place.unit for place in self.places.values()), key=lambda unit: order[unit.parameter])
            self._homes = {unit.name: inside.get(unit.parameter, "") for unit in units}
        return self._homes

    def forms(self) -> dict[str, Form]:
        """What each unit is stored as; methods that change a base give forms on it."""
        with torch.no_grad():
            common = {id(state): _plain(state) for place in self.places.values() if (state := place.state.common) is not None}
            return {name: place.method.form(_plain(place.state, common)) for name, place in self.places.items()}

    def delta(self, base: str = "") -> Delta:
        """What was learnt, as a change of the module: its leaves know the weights that they stand on; ``base`` names the model in words."""
        shared = {
            f"{place.method}: {part}": tensor.detach().clone()
            for place in self.places.values() if place.state.common is not None
            for part, tensor in place.state.common.trained.items()
        }  # fmt: skip
        made = Delta(self.forms(), shared, base, tuple(self._untold()), tuple(map(self._beside, self.asides)))
        return made.stamped(lambda name: self._beneath(self.places[name]))

    def _beside(self, each: Standing) -> Beside:
        tensors = {part: tensor.detach().clone() for part, tensor in {**each.state.frozen, **each.state.trained}.items()}
        return Beside(each.place, str(each.method), tensors, fingerprint(self.module.get_submodule(each.place)))

    def _untold(self) -> Iterator[str]:
        """What no weight can tell."""
        if treated := [name for name, place in self.places.items() if place.method.treats_inputs]:
            yield (
                f"inputs of {len(treated)} layers were treated in training, among them those of {treated[0]}; a plain checkpoint takes them as "
                "they are"
            )

    def _beneath(self, place: Place) -> torch.Tensor:
        if place.base is not None:
            return place.base.dense()
        return place.unit.matrix(self._stored[place.unit.parameter].detach())

    def _by_method(self) -> Iterator[tuple[Parametrization, dict[str, State]]]:
        ordered = sorted(self.places.items(), key=lambda item: str(item[1].method))
        for _, group in groupby(ordered, key=lambda item: str(item[1].method)):
            places = dict(group)
            yield next(iter(places.values())).method, {name: place.state for name, place in places.items()}

    def _take(self, revision: Revision, optimizer: torch.optim.Optimizer | None) -> None:
        for name, state in revision.states.items():
            learnt = dict(self.places[name].state.trained)
            for part, tensor in state.trained.items():
                if tensor is not learnt[part]:
                    learnt[part] = _moved(learnt[part], tensor, revision.kept.get(name, {}).get(part), optimizer)
            self.places[name].state = replace(state, trained=learnt)

    def _install(self) -> None:
        for parameter in self.module.parameters():
            self._asked[parameter] = parameter.requires_grad
            parameter.requires_grad_(False)
        self._stack.callback(self._restore)
        names: dict[str, list[Place]] = {}
        for place in self.places.values():
            names.setdefault(place.unit.parameter, []).append(place)
        tables: dict[nn.Module, Computed] = {}
        same: dict[int, list[tuple[nn.Module, str]]] = {}
        for owner in self.module.modules():
            for attribute, held in owner._parameters.items():
                same.setdefault(id(held), []).append((owner, attribute))
        self._stored = {name: self.module.get_parameter(name) for name in names}
        for name, places in names.items():
            for owner, attribute in same[id(self._stored[name])]:
                table = tables.setdefault(owner, Computed(owner))
                table.make[attribute] = partial(self._made, name, places)
                if len(places) == 1 and attribute == "weight":
                    self._call(owner, places[0])
        for table in tables.values():
            table.install()
            self._stack.callback(table.remove)
        attach(self.module, self.asides, self._stack, lambda: self.step)

    def _restore(self) -> None:
        for parameter, asked in self._asked.items():
            parameter.requires_grad_(asked)

    def _made(self, name: str, places: list[Place]) -> torch.Tensor:
        """A parameter in its storage's layout: one unit's weight, or a stack whose other experts are as they were."""
        stored = self._stored[name]
        if places[0].unit.expert is None:
            return places[0].unit.stored(self._watched(places[0])).to(stored.dtype)
        made = {place.unit.expert: place.unit.stored(self._watched(place)).to(stored.dtype) for place in places}
        return torch.stack([made.get(expert, stored[expert]) for expert in range(len(stored))])

    def _watched(self, place: Place) -> torch.Tensor:
        weight = self.weight(place.unit.name)
        if weight.requires_grad and place.method.watches(replace(self.step, number=self.step.number + 1)):
            weight.register_hook(partial(self._collect, place.unit.name))
        return weight

    def _collect(self, name: str, gradient: torch.Tensor) -> None:
        seen = self._gradients.get(name)
        self._gradients[name] = gradient.detach().float() if seen is None else seen + gradient.float()

    def _call(self, owner: nn.Module, place: Place) -> None:
        """Call a layer in its method's own way, where that has one and the layer is one that multiplies and adds a bias."""
        if type(place.method).product is Parametrization.product and not place.method.treats_inputs:
            return
        if place.unit.kind in ("linear", "conv1d") and owner._parameters.get("weight") is not None:
            had = owner.__dict__.get(_AT_HOME)
            owner.__dict__[_AT_HOME] = partial(self._forward, owner, place)
            self._stack.callback(lambda: owner.__dict__.pop(_AT_HOME) if had is None else owner.__dict__.__setitem__(_AT_HOME, had))
        elif place.method.treats_inputs:
            raise ModelError(
                f"{place.unit.name}: {place.method} changes what a linear layer is given, and this is of kind {place.unit.kind}."
            )

    def _forward(self, owner: nn.Module, place: Place, x: torch.Tensor) -> torch.Tensor:
        taken = place.method.inputs(place.state, x, self.step)
        watched = place.method.watches(replace(self.step, number=self.step.number + 1))
        made = None if watched else place.method.product(place.base, place.state, taken, self.step)
        bias: Any = owner.bias
        if made is None:
            weight = self._watched(place)
            return F.linear(taken, weight.to(taken.dtype), None if bias is None else bias.to(taken.dtype))
        return made if bias is None else made + bias.to(made.dtype)


def trained(module: nn.Module, plan: Plan, **settings: Any) -> Trained:
    """A context in which ``module`` computes with trained weights, for a loop of your own.

    ``plan`` is one option for all layers of the blocks (``"lora rank=8"``), or options by pattern of parameter names; ``total`` the number of
    updates that schedules are told in; ``forms`` what units are stored as, on which methods stand, where that is not the module's own weight: its
    dtype is the one that is rounded to. Call ``revise(optimizer)``
    after each update. Raises ``SettingError`` for a plan that says nothing, ``ModelError`` where a method cannot be put on a unit.

        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> with trained(model, "lora rank=2") as t:
        ...     t.count
        52
    """
    return Trained(module, plan, **settings)


def _leaves(state: State) -> State:
    """The same with what is trained as parameters of its own."""
    leaves = {
        name: tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone())
        for name, tensor in state.trained.items()
    }
    return replace(state, trained=leaves)


def _plain(state: State, shared: Mapping[int, State] | None = None) -> State:
    common = None if state.common is None or shared is None else shared[id(state.common)]
    return replace(state, trained={name: tensor.detach().clone() for name, tensor in state.trained.items()}, common=common)


def _moved(
    parameter: torch.Tensor, tensor: torch.Tensor, kept: torch.Tensor | None, optimizer: torch.optim.Optimizer | None
) -> torch.Tensor:
    """A parameter of another value, and its moments at the places that they take now; another object where the shape is another.

    A graph that somebody still holds has the old shape, so no tensor may change its shape under it.
    """
    moments = {} if optimizer is None else optimizer.state.get(parameter, {})
    if kept is not None:
        for name, moment in moments.items():
            if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape and moment.ndim:
                taken = moment.reshape(-1)[kept.clamp_min(0)].masked_fill(kept < 0, 0)
                moments[name] = taken.reshape(tensor.shape)
    if tensor.shape == parameter.shape:
        parameter.data, parameter.grad = tensor.detach().clone(), None
        return parameter
    made = nn.Parameter(tensor.detach().clone())
    if optimizer is not None:
        for group in optimizer.param_groups:
            group["params"] = [made if each is parameter else each for each in group["params"]]
        if parameter in optimizer.state:
            optimizer.state[made] = optimizer.state.pop(parameter)
    return made
