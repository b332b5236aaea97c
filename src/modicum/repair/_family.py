"""The repair family: what a form lost is approximated by a second form, and the two are added, or the form itself moves."""

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
            forms[unit.name] = self.mended(form, reference.float(), stats[unit.name])
        return Change(forms=forms)

    def mended(self, form: Form, weight: torch.Tensor, stats: Stats) -> Form:
        """The form of float32 ``weight`` (rows, columns) with what ``repair`` adds; a method that adds nothing overrides this."""
        added = self.repair(weight - form.dense().float(), stats, form.dtype)
        return Sum((*form.parts, added) if isinstance(form, Sum) else (form, added))
