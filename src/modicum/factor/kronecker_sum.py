"""Sums of Kronecker products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from modicum.core.method import Change, Method, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms import Chained, Dense, Form
from modicum.forms.lift import on_dense
from modicum.numerics.products import kronecker


@dataclass(frozen=True, kw_only=True)
class KroneckerSum(Method):
    """Replace a weight by the nearest sum of ``n`` Kronecker products of small rules and blocks: what ``phm`` trains.

    ``Σ A_i ⊗ S_i`` with A of n × n, or of the next smaller number that divides both sides; about 1/n of the numbers.

    *Shapes:* weight (rows, columns); rules (n · n, n), blocks (n, rows / n · columns / n). *Needs and cost:* no data; one decomposition of a matrix
    (n · n, rows · columns / n²). *Reduces to:* the original weight with ``n=1``. *Raises:* ``SettingError`` where it comes after a step that left no
    dense weight.

    Example:
        >>> import torch
        >>> KroneckerSum(n=2).factor(torch.ones(4, 4)).values
        17

    """

    paper = Paper(
        "Beyond Fully-Connected Layers with Quaternions: Parameterization of Hypercomplex Multiplications with 1/n Parameters", "2102.08597", 2021,
        "Aston Zhang and Yi Tay and Shuai Zhang and Alvin Chan and Anh Tuan Luu and Siu Cheung Hui and Jie Fu",
    )  # fmt: skip

    known_gaps: ClassVar[dict[str, str]] = {"permuted rows permute the answer": "rows and columns are divided by their places"}

    n: int = param(2, "how many products are added, and the size of their rules", between=(1, 64))

    def factor(self, weight: torch.Tensor) -> Form:
        """Rules and blocks of ``weight`` (rows, columns) in its dtype."""
        rows, columns = weight.shape
        n = next(size for size in range(self.n, 0, -1) if rows % size == 0 and columns % size == 0)
        rules, blocks = kronecker(weight, n, n, n)
        count = len(rules)
        left, centre = rules.reshape(count, n * n).T.contiguous(), blocks.reshape(count, -1)
        as_stored = lambda part: Dense(part.to(weight.dtype).contiguous())
        return Chained(as_stored(left), as_stored(centre), as_stored(torch.ones(1, 1)), ((n, n), (rows // n, columns // n), (1, 1)))

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Factor every unit of the site."""
        return Change(forms={u.name: on_dense(current[u.name], stats[u.name], lambda w, _: self.factor(w), self.key()) for u in site.units})
