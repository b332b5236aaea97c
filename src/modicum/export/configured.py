"""Targets whose loader builds all blocks from one config: cuts alike in all of them, and fewer blocks, where numbers of the config say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.core.method import Change
from modicum.core.unit import Site
from modicum.export._family import Target
from modicum.export.depth import following, shallower
from modicum.export.narrow import Incision
from modicum.export.uniform import narrower
from modicum.forms import Cut, Dense, Form
from modicum.models.model import Model
from modicum.sweep import Script


class Configured(Target):
    """A target that holds what changes of a model's shape as far as one config describes what remains."""

    def __init__(self, model: Model, script: Script):
        super().__init__(model, script)
        self._tried: dict[tuple[tuple[str, int], ...], bool] = {}
        self._depths: dict[frozenset[str], Any | None] = {}
        if model.config is None or not hasattr(model.module, "save_pretrained"):
            raise ModelError(f"{model.name}: must be a model of Transformers for this target, is a plain module. Pass --target modicum.")

    @override
    def holds(self, change: Change) -> str:
        if change.biases or any(not isinstance(form, Dense | Cut) for form in change.forms.values()):
            return "it cannot hold biases that compression adds"
        if (change.dropped and "drop" in self.off) or self.wrong(
            "cut", [self.model.units[n] for n, f in change.forms.items() if isinstance(f, Cut)]
        ):
            return "its loader makes another model of what remains"
        cuts = self.incisions(change.forms)
        if cuts is None or (cuts and not self.describes(cuts, change.dropped)):
            return "its config has no numbers for these widths, which must be the same in all blocks"
        if change.dropped and self._shallower(frozenset(change.dropped)) is None:
            return "its config cannot describe the model without these blocks"
        return ""

    def describes(self, cuts: Mapping[str, Incision], dropped: Collection[str] = ()) -> bool:
        """Whether what cuts leave can be told."""
        return narrower(self.model.module, self.model.config, cuts, dropped) is not None

    def _shallower(self, dropped: frozenset[str]) -> Any | None:
        """The config without some blocks, the others as wide as they were; found once for each set."""
        if dropped not in self._depths:
            self._depths[dropped] = shallower(self.model, self.model.config, dropped)
        return self._depths[dropped]

    @override
    def together(self, cuts: Mapping[str, Site]) -> dict[str, tuple[Site, ...]]:
        """All of one kind at once: the config has one number for them."""
        kinds: dict[str, list[Site]] = {}
        for site in cuts.values():
            kinds.setdefault(f"all blocks:{site.name.rpartition(':')[2]}", []).append(site)
        return {name: tuple(members) for name, members in kinds.items()}

    @override
    def narrows(self, members: Sequence[Site], kept: Mapping[str, Sequence[int]]) -> bool:
        if any(self.wrong("cut", member.units) for member in members):
            return False
        counts = tuple((member.name, len(kept[member.name])) for member in members)
        if counts not in self._tried:
            self._tried[counts] = self.describes(Incision.of_cuts(members, kept))
        return self._tried[counts]

    def shaped_config(self, forms: Mapping[str, Form], dropped: frozenset[str]) -> Any:
        """The config as cuts and dropped blocks leave it."""
        cuts = self.incisions(forms)
        config = narrower(self.model.module, self.model.config, cuts, dropped) if cuts else self.model.config
        if cuts is None or config is None:
            raise ModelError(f"{self.model.name}: its config has no numbers for the widths that cuts leave. Pass --target modicum.")
        return following(config, self.model.config, self._shallower(dropped)) if dropped else config

    def incisions(self, forms: Mapping[str, Form]) -> dict[str, Incision] | None:
        """What cuts leave of each unit; None where a unit is no plain matrix of its own."""
        found = {name: Incision.of(self.model.units[name], form) for name, form in forms.items() if isinstance(form, Cut)}
        kept = {name: incision for name, incision in found.items() if incision is not None}
        return kept if len(kept) == len(found) else None
