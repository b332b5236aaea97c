"""Refine: the numbers and codes of any form, moved together to where its outputs are nearest to the original's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Stats
from modicum.forms import Form
from modicum.numerics.refining import refined
from modicum.numerics.threads import single_threaded
from modicum.repair._family import Repairer


@dataclass(frozen=True, kw_only=True)
class Refine(Repairer):
    """Move codes and numbers of whatever form a weight has, in the same bytes, to where its outputs are nearest to the original's.

    The loss is ``tr((T - V) H (T - V)ᵀ)`` of the form's value V, H the covariance of inputs as the compressed model produces them, and T what
    gives on them a part of what the original gave on its own, ``W + towards · W Δ (H + ridge)⁻¹`` with ``Δ = Σ (y - x) xᵀ``. Numbers (values
    under a mask, factors, scales, entries of codebooks) take conjugate gradients, codes of integers and codebooks coordinate descent
    (``numerics/refining.py``); none loses more. Codes of floats and of blocks, and under cuts, stay.

    *Shapes:* weight (rows, columns), covariance (columns, columns). *Needs and cost:* covariance; about fourteen times rows · columns²
    multiply-adds for each round and tensor of numbers, and where inputs drifted a Cholesky factorization; no bytes. *Reduces to:* what came before
    it with ``rounds=0``. *Raises:* ``SettingError`` where no step before it changed the weight, or left a form whose numbers cannot move, such as
    a coded stream. Weights whose inputs were not seen stay as they are.

    *Differences from the paper:* there codes of one grid move, here codes and numbers of any form; and towards what was lost before, too.

    Example:
        >>> import torch
        >>> from modicum.forms import Masked
        >>> weight, stats = torch.randn(8, 16), Stats(covariance=torch.eye(16))
        >>> Refine().mended(Masked.of(weight, weight > 0), weight, stats).kind
        'masked'

    """

    paper = Paper(
        "QuantEase: Optimization-based Quantization for Language Models", "2309.01885", 2023,
        "Behdin, Kayhan and Acharya, Ayan and Gupta, Aman and Song, Qingquan and Zhu, Siyu and Keerthi, Sathiya and Mazumder, Rahul",
    )  # fmt: skip
    needs = frozenset({Need.COVARIANCE})
    blockwise = True
    held = 64

    rounds: int = param(4, "times that all codes and numbers are moved in turn, until nothing is gained; 0: none are", between=(0, 1000))
    towards: float = param(0.5, "how far they make up for what was lost before: 1 as well as they can", between=(0.0, 1.0))
    damping: float = param(0.01, "share of the covariance's mean diagonal added to its diagonal", between=(0.0, 10.0))

    def without_data(self) -> Refine:
        """The stand-in for weights whose inputs were not seen: they stay as they are."""
        return Refine(rounds=0)

    @override
    def wanted(self) -> frozenset[Need]:
        return frozenset() if not self.rounds else self.needs | (frozenset({Need.DRIFT}) if self.towards else frozenset())

    @override
    def mended(self, form: Form, weight: torch.Tensor, stats: Stats) -> Form:
        """A form that loses no more than ``form`` does. Raises ``SettingError`` where nothing of it can move."""
        if not self.rounds:
            return form
        if not form.movable():
            raise SettingError(
                f"{self.key()}: must follow a step whose numbers can move, came after one that left it {form.kind}. Leave it out."
            )
        assert stats.moment is not None
        return refined(form, self._target(weight, stats), stats.moment, self.damping, self.rounds)

    def _target(self, weight: torch.Tensor, stats: Stats) -> torch.Tensor:
        """What makes up for a share of how inputs drifted, where that was seen and the damped covariance is positive definite."""
        if stats.drift is None or stats.covariance is None or not self.towards:
            return weight
        key = ("refining", self.damping)
        if key not in stats.cache:
            damped = stats.covariance.clone()
            damped.diagonal().add_(self.damping * float(damped.diagonal().double().mean()))
            with single_threaded():
                root, failed = torch.linalg.cholesky_ex(damped)
            stats.cache[key] = None if int(failed) else root
        if (root := stats.cache[key]) is None:
            return weight
        with single_threaded():
            return weight + self.towards * torch.cholesky_solve((weight @ stats.drift).T, root).T
