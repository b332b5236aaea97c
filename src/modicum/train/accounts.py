"""What a model that is not trained yet will take, and the settings of a method at which it fits a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from modicum.core import grammar
from modicum.core.budget import Budget, readable
from modicum.core.errors import BudgetError, SettingError
from modicum.core.method import registry
from modicum.core.option import Option
from modicum.export._family import Target
from modicum.forms import Dense, Form, Integer, Masked
from modicum.forms.leaves import beside
from modicum.restrict._family import Restriction
from modicum.restrict._healer import Healer
from modicum.train.finding import planned

# What a file's header may take more where entries fall elsewhere than was forecast, for each weight.
_DIGITS = 8


@dataclass(frozen=True)
class Spent:
    """Bytes of the weight files, and weight values in them."""

    bytes: int
    values: int


@dataclass(frozen=True)
class Account:
    """What each method's model takes in a target's files; ``hold`` says as what the target holds a form."""

    target: Target
    hold: Callable[[str, Form], Form]

    def of(self, method: Restriction) -> Spent:
        """What is spent in the end. Raises ``SettingError`` for settings that these weights cannot have."""
        chosen = planned(self.target.model.module, str(method)).units
        if method.treats_inputs and (other := [unit for unit, _ in chosen.values() if unit.kind not in ("linear", "conv1d")]):
            kind = other[0].kind
            raise SettingError(
                f"{method}: changes what linear layers are given, {other[0].name} is of kind {kind}. Have it leave inputs as they are."
            )
        slack = _DIGITS * len(chosen) if method.shifts else 0
        made = method.outlines({name: unit.shape for name, (unit, _) in chosen.items()})
        return self.forms({name: narrowed(form, chosen[name][0].dtype) for name, form in made.items()}, slack=slack)

    def untold(self, made: Mapping[str, Form]) -> list[str]:
        """What of these forms the target cannot hold, in a sentence; it writes such weights whole."""
        whole = [name for name, form in made.items() if isinstance(self.hold(name, form), Dense) and not isinstance(form, Dense)]
        if not whole:
            return []
        return [
            f"{len(whole)} of {len(made)} weights are written whole, among them {whole[0]}: {self.target.name} cannot hold what they became."
        ]

    def forms(self, made: Mapping[str, Form], slack: int = 0) -> Spent:
        """What is spent with these forms; all other weights are dense."""
        model = self.target.model
        held = {name: self.hold(name, form) for name, form in made.items()}
        values = sum(form.values for form in made.values()) + sum(tensor.numel() for tensor in beside(made.values()).values())
        values += model.parameters - sum(model.units[name].size for name in made)
        return Spent(self.target.layout(held, {}, frozenset()).nbytes() + slack, values)


def narrowed(form: Form, dtype: torch.dtype) -> Form:
    """The same in the dtype that the weight is stored in, where that rounds entry by entry as the weight is rounded."""
    if isinstance(form, Masked):
        return Masked(form.kept.to(dtype), form.mask)
    if isinstance(form, Dense):
        return Dense(form.dense().to(dtype))
    return form


def rowed(form: Form) -> Form:
    """A grid of one scale for all of a weight, as one with that scale for each row."""
    if isinstance(form, Integer) and form.scale.shape == (1, 1) and form.shape[0] > 1:
        return Integer(form.codes, form.scale.expand(form.shape[0], 1).contiguous(), form.zero, form.bits, 0)
    return form


def restriction(text: str) -> Restriction:
    """The method of an option. Raises ``SettingError`` for one that does not make a weight small while it is trained."""
    option = Option.parse(text, trained=True)
    if len(option.steps) != 1 or not isinstance(option.steps[0], Restriction) or isinstance(option.steps[0], Healer):
        raise SettingError(f"method: must be one of those that train a small model ({', '.join(beginners())}), got {text!r}.")
    return option.steps[0]


def beginners() -> list[str]:
    """Names of the methods that train a small model from the start; others of their family go on from what is stored."""
    return sorted(key.split("/")[1] for key, cls in registry().items() if issubclass(cls, Restriction) and not issubclass(cls, Healer))


def within(text: str, budget: Budget | None, account: Account) -> Restriction:
    """The method of ``text`` with its first dial that is not set there turned as far as the budget allows.

    Raises ``BudgetError`` with the smallest size that the method reaches where none fits.
    """
    method = restriction(text)
    if budget is None:
        account.of(method)
        return method
    given = set(grammar.spelled(text)[0][1])
    dial = next((one for one in fields(method) if one.metadata.get("dial") and one.name not in given), None)
    settings = [method] if dial is None else _Turned(method, dial, account)
    fits = lambda made: exceeded(account.of(made), budget, account) is None
    low, high = 0, len(settings)  # settings[low - 1] fits, or is too small to be had; settings[high] does not
    if _possible(settings[-1], account) and fits(settings[-1]):  # whole weights, which need no mask, may take less than almost whole ones
        return settings[-1]
    least = next((place for place in _halving(settings, account)), None)
    if least is None or not fits(settings[least]):
        spent = account.of(settings[least if least is not None else -1])
        raise BudgetError(
            f"budget {budget}: {str(settings[least if least is not None else -1])!r} takes at least {_told(spent, account)}. Allow more, or "
            "choose another method."
        )
    low = least
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(settings[middle]) else (low, middle)
    return settings[low]


class _Turned:
    """A method at every place of its dial, from the smallest result to the largest: shares by the entry, counts one by one."""

    def __init__(self, method: Restriction, dial: Any, account: Account):
        self.method, self.name = method, dial.name
        shapes = [unit.shape for unit, _ in planned(account.target.model.module, str(method)).units.values()]
        first, last = dial.metadata["between"]
        self.shared = isinstance(dial.default, float)
        self.total = sum(rows * columns for rows, columns in shapes)
        self.first = 1 if self.shared else first
        self.count = self.total if self.shared else min(last, max(max(shape) for shape in shapes)) - first + 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Restriction:
        place %= self.count
        value: Any = min(1.0, (place + 1) / self.total) if self.shared else self.first + place
        return replace(self.method, **{self.name: value})


def _halving(settings: Any, account: Account) -> Any:
    """The first place that these weights can have, found by halves."""
    can = lambda place: _possible(settings[place], account)
    low, high = -1, len(settings) - 1
    if not can(high):
        account.of(settings[high])  # says why
        return
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if can(middle) else (middle, high)
    yield high


def _possible(method: Restriction, account: Account) -> bool:
    try:
        account.of(method)
    except SettingError:
        return False
    return True


def exceeded(spent: Spent, budget: Budget, account: Account) -> str | None:
    """What of a budget is exceeded, or None."""
    allowed, model = budget.bytes(account.target.model.parameters), account.target.model
    if allowed is not None and spent.bytes > allowed:
        return f"{spent.bytes:,} bytes where {allowed:,} are allowed"
    if budget.params is not None and spent.values > budget.params * model.parameters:
        return f"{spent.values:,} values where {int(budget.params * model.parameters):,} are allowed"
    return None


def _told(spent: Spent, account: Account) -> str:
    return f"{readable(spent.bytes)} and {100 * spent.values / account.target.model.parameters:.1f} % of the parameters"
