"""How a function of a plain weight reaches the weight inside a form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from modicum.core.errors import SettingError
from modicum.core.unit import Stats
from modicum.forms.cut import Cut
from modicum.forms.dense import Dense
from modicum.forms.form import Form


def on_dense(form: Form, stats: Stats, function: Callable[[torch.Tensor, Stats], Form], who: str) -> Form:
    """Apply ``function(weight, stats)`` to a dense form, or to what remains inside a cut. Raises ``SettingError`` for any other form."""
    if isinstance(form, Dense):
        return function(form.weight, stats)
    if isinstance(form, Cut):
        seen = stats if form.columns is None else stats.kept(form.columns.nonzero()[:, 0])
        if form.rows is not None and seen.raised is not None:
            seen = dataclasses.replace(seen, raised=seen.raised[form.rows])
        if form.rows is not None and seen.slopes is not None:
            seen = dataclasses.replace(seen, slopes=seen.slopes.rows(form.rows))
        return Cut(on_dense(form.inner, seen, function, who), form.rows, form.columns)
    raise SettingError(f"{who}: must come before steps that change the form, came after one that left it {form.kind}. Put {who} first.")
