"""Sums of Kronecker products."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.factor._family import Chain
from modicum.forms.chained import Sides
from modicum.numerics.products import kronecker


@dataclass(frozen=True, kw_only=True)
class KroneckerSum(Chain):
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

    n: int = param(2, "how many products are added, and the size of their rules", between=(1, 64))

    def parts(self, weight: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], Sides]:
        """Rules and blocks, and a one."""
        rows, columns = weight.shape
        n = next(size for size in range(self.n, 0, -1) if rows % size == 0 and columns % size == 0)
        rules, blocks = kronecker(weight, n, n, n)
        left, centre = rules.reshape(len(rules), n * n).T, blocks.reshape(len(rules), -1)
        return (left, centre, torch.ones(1, 1)), ((n, n), (rows // n, columns // n), (1, 1))
