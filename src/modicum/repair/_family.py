"""The repair family: what a form lost is approximated by a second form, and the two are added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from modicum.core.errors import SettingError
from modicum.core.method import Change, Method
from modicum.core.unit import Site, Stats
from modicum.forms import Dense, Form, Sum


@dataclass(frozen=True, kw_only=True)
class Repairer(Method):
    """Adds what ``repair`` gives to each unit's form."""

    def repair(self, error: torch.Tensor, stats: Stats, dtype: torch.dtype) -> Form:
        """Form, stored in ``dtype``, that approximates float32 ``error`` (rows, columns) = original minus current."""
        raise NotImplementedError

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Repair every unit of the site. Raises ``SettingError`` where there is nothing to repair."""
        forms: dict[str, Form] = {}
        for unit in site.units:
            form, reference = current[unit.name], stats[unit.name].reference
            if isinstance(form, Dense) or reference is None:
                raise SettingError(f"{self.key()}: must follow a step that changed the weight, {unit.name} is unchanged. Put it last.")
            added = self.repair(reference.float() - form.dense().float(), stats[unit.name], form.dtype)
            forms[unit.name] = Sum((*form.parts, added) if isinstance(form, Sum) else (form, added))
        return Change(forms=forms)
