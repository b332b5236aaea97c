"""The prune family: a method scores entries, or solves for them; the family turns a share or an n:m pattern into a mask."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from modicum.core.errors import SettingError
from modicum.core.method import Change, Method
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms import Form, Masked
from modicum.forms.lift import on_dense

# Up to so many scores are sorted; of more, the least one kept is found.
_SHORT = 64


@dataclass(frozen=True, kw_only=True)
class Pruner(Method):
    """Settings that all unstructured and n:m pruners share."""

    scope: ClassVar[Literal["tensor", "row"]] = "tensor"

    keep: float = param(0.5, "share of the weights kept", between=(0.0, 1.0), dial=True)
    pattern: str | None = param(None, "n:m, n kept of every m consecutive columns; overrides keep")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None:
            self.n_of_m()

    def n_of_m(self) -> tuple[int, int]:
        """(n, m) of the pattern. Raises ``SettingError``."""
        found = re.fullmatch(r"(\d+):(\d+)", self.pattern or "")
        if not found or not 0 < int(found[1]) <= int(found[2]) <= 64:
            raise SettingError(f"{self.key()}.pattern: must be n:m with 0 < n <= m <= 64, got {self.pattern!r}.")
        return int(found[1]), int(found[2])

    def score(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """Importance (rows, columns) of every entry; the lowest go."""
        raise NotImplementedError

    def solve(self, weight: torch.Tensor, stats: Stats) -> tuple[torch.Tensor, torch.Tensor]:
        """New float32 weight and boolean mask; a method that also updates what remains overrides this instead of ``score``."""
        return weight, self.mask(self.score(weight, stats), "row" if getattr(self, "per_row", False) else self.scope)

    def mask(self, scores: torch.Tensor, scope: str) -> torch.Tensor:
        """True where ``scores`` (rows, columns) are high enough, over the whole tensor or row by row; ties go by position."""
        rows, columns = scores.shape
        if self.pattern is not None:
            kept, of = self.n_of_m()
            padded = torch.nn.functional.pad(scores, (0, -columns % of), value=-1.0).view(rows, -1, of)
            return _top(padded, kept).view(rows, -1)[:, :columns]
        if scope == "row":
            return _top(scores, round(self.keep * columns))
        return _top(scores.reshape(1, -1), round(self.keep * scores.numel())).view_as(scores)

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Prune every unit of the site."""
        forms = {u.name: on_dense(current[u.name], stats[u.name], self._prune, self.key()) for u in site.units}
        return Change(forms=forms, events=[f"{u.name}: {event}" for u in site.units for event in stats[u.name].events])

    def _prune(self, weight: torch.Tensor, stats: Stats) -> Form:
        value, mask = self.solve(weight.float(), stats)
        return Masked.of(value.to(weight.dtype), mask)


def _top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Boolean mask of the ``count`` highest scores along the last axis; of equal ones the first."""
    length = scores.shape[-1]
    if count in (0, length):
        return torch.full(scores.shape, count > 0, device=scores.device)
    if length <= _SHORT:
        mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        return mask.scatter_(-1, scores.argsort(stable=True, dim=-1, descending=True)[..., :count], True)
    least = scores.kthvalue(length - count + 1, dim=-1, keepdim=True).values
    mask, equal = scores > least, scores == least
    wanted = count - mask.sum(-1, keepdim=True)
    if bool((equal.sum(-1, keepdim=True) > wanted).any()):
        equal &= equal.cumsum(-1) <= wanted
    return mask.logical_or_(equal)
