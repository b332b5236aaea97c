"""What a plan makes of a model that nothing was measured on: each option's stand-in without data, in as many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from modicum.core.option import Option
from modicum.core.unit import Site, Stats
from modicum.forms import Dense, Form
from modicum.models.model import Model


class Dataless(Mapping[str, Form]):
    """The ``forms`` of units, where their ``options`` have one by stand-ins without data; each is made when it is asked for, and not kept.

    ``start`` gives units that a structural change has altered already.
    """

    def __init__(self, model: Model, forms: Mapping[str, Form], options: Mapping[str, Option], start: Mapping[str, Form]):
        self.model, self.forms, self.start = model, forms, start
        found = {name: option.without_data() for name, option in options.items() if name in forms}
        self.options = {name: option for name, option in found.items() if option is not None and option != options[name]}

    def __getitem__(self, name: str) -> Form:
        if name not in self.options:
            return self.forms[name]
        unit = self.model.units[name]
        begun = self.start.get(name) or Dense(self.model.matrix(unit))
        return self.options[name].apply(Site(name, "unit", (unit,)), {name: Stats(reference=begun.dense())}, {name: begun}).forms[name]

    def __contains__(self, name: object) -> bool:
        return name in self.forms

    def __iter__(self) -> Iterator[str]:
        return iter(self.forms)

    def __len__(self) -> int:
        return len(self.forms)
