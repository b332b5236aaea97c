"""Within: a weight of which chosen rows and columns are told by another form, such as a change learnt on a cut weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from modicum.forms.composite import Composite
from modicum.forms.dense import Dense
from modicum.forms.form import Form, expect


class Within(Composite):
    """``parts[0]`` whose entries in ``rows`` and ``columns`` (bool, (rows,) and (columns,)) are ``parts[1]``, which stands on just those."""

    kind = "within"

    def __init__(self, parts: tuple[Form, Form], rows: torch.Tensor, columns: torch.Tensor):
        self.parts, self.rows, self.columns, self.shape, self.dtype = parts, rows, columns, parts[0].shape, parts[0].dtype

    @override
    def made_of(self, parts: Sequence[Form]) -> Form:
        return Within((parts[0], parts[1]), self.rows, self.columns)

    @override
    def on(self, base: Form | None, shared: Mapping[str, torch.Tensor] | None = None) -> Form:
        whole = self.parts[0].on(base, shared)
        inside = None if base is None else Dense(base.dense()[self.rows][:, self.columns])
        return self.made_of((whole, self.parts[1].on(inside, shared)))

    @override
    def own(self) -> dict[str, torch.Tensor]:
        return {"rows": self.rows, "columns": self.columns}

    @override
    def value(self) -> torch.Tensor:
        value = self.parts[0].value().clone()
        places = self.rows.nonzero(), self.columns.nonzero()[:, 0]
        value[places] = self.parts[1].value().to(value.dtype)
        return value

    @override
    @classmethod
    def joined(
        cls, parts: tuple[Form, ...], own: Mapping[str, torch.Tensor], said: Mapping[str, Any], shape: tuple[int, int], dtype: torch.dtype
    ) -> Form:
        whole, inside = parts
        rows, columns = (expect(own[name], (size,), torch.bool) for name, size in zip(("rows", "columns"), shape))
        if whole.shape != shape or inside.shape != (int(rows.sum()), int(columns.sum())):
            raise ValueError("a weight, and a form of as many rows and columns as are chosen, belong together")
        return cls((whole, inside), rows, columns)
