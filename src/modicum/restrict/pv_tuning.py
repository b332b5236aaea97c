"""PV-Tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.errors import SettingError
from modicum.core.method import Paper
from modicum.core.parametrization import Revision, Start, State, Step
from modicum.core.settings import param
from modicum.forms import Codebook
from modicum.forms.codebook import Vectors
from modicum.numerics.codebook import begun, nearest
from modicum.restrict._family import beginning
from modicum.restrict._healer import Healer, rounded, size_of, straight

if TYPE_CHECKING:
    from modicum.forms import Form

# How much of a gradient's mean, and of its square's, lives on from update to update.
_MEAN, _SQUARE = 0.95, 0.98
# Codebooks of a weight that is not compressed.
_OWN = Vectors(bits=4, dimension=2)


@dataclass(frozen=True, kw_only=True)
class PvTuning(Healer):
    """Entries of codebooks and scales follow the gradient, and after each update the codes of few vectors, where it is largest, are chosen anew.

    Codes cannot follow a gradient: steps small enough for a whole weight move none of them. Steps of few vectors may be large. So of all vectors the
    ``share`` whose mean gradient is largest look for the entries nearest to ``w - pace · size · m / √v``, with m and v the running means of the
    gradient and its square and ``size`` the root mean square of the row; they take them where the gradient says that the loss falls.

    *Shapes:* as ``held`` for entries and scales; codes (rows, stages, vectors), and two numbers per weight of the gradient's means.

    *Needs and cost:* no statistics; gradients of whole weights, and rows · columns · share · 2^bits multiply-adds an update.

    *Reduces to:* ``held`` with ``share=0``.

    *Raises:* ``SettingError`` for a form of another kind than codebooks.

    *Differences from the paper:* vectors are chosen by their gradient, not by how far the step goes; what was chosen anew forgets its mean gradient;
    fewer are towards the end, of less than one vector an update one every so many; steps are as large as a share of a row's weights, so that
    no second learning rate is needed.

    Example:
        >>> str(PvTuning(share=0.02))
        'pv_tuning share=0.02'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="PV-Tuning: Beyond Straight-Through Estimation for Extreme LLM Compression",
        arxiv="2405.14852",
        year=2024,
        authors="Vladimir Malinovskii and Denis Mazur and Ivan Ilin and Denis Kuznedelev and Konstantin Burlachenko and Kai Yi and others",
    )

    share: float = param(
        0.01, "share of the vectors that may take other codes after an update, falling to none at the end", between=(0.0, 1.0)
    )
    pace: float = param(1.0, "how far their weights would go, in sizes of a row's weights", between=(0.0, 100.0))

    @override
    def suits(self, stored: Form) -> bool:
        return isinstance(stored, Codebook)

    @override
    def begin(self, start: Start) -> State:
        """What is stored, with nothing known of gradients; a weight that is not compressed begins on codebooks of its own, of two bits a weight."""
        stored = (
            start.stored
            if start.stored is not None
            else begun(beginning(start), None, _OWN, torch.float32 if start.base is None else start.base.dtype)
        )
        if not isinstance(stored, Codebook):
            raise SettingError(
                f"{start.unit}: must be stored as a codebook to choose its codes anew, is {stored.kind}. Train it with held."
            )
        numbers, zeros = stored.movable(), torch.zeros(start.shape)
        trained = {name: torch.zeros(tensor.shape) for name, tensor in numbers.items()}
        sizes = {f"{name} size": size_of(name, tensor) for name, tensor in numbers.items()}
        return State(trained, {**sizes, "codes": stored.codes, "mean": zeros, "square": zeros}, base=start.base, stored=stored)

    def _standing(self, state: State) -> tuple[Codebook, dict[str, torch.Tensor]]:
        """What is stored with the codes that it has by now, and its numbers as they stand, float32, differentiable."""
        assert isinstance(state.stored, Codebook)
        numbers = {name: before.float() + state[f"{name} size"] * state[name] for name, before in state.stored.movable().items()}
        return state.stored.with_codes(state["codes"]), numbers

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The exact value of what is stored, with the gradient of its numbers before they are rounded."""
        stored, numbers = self._standing(state)
        return straight(stored.having(numbers).value(), rounded(stored, numbers).dense().float())

    @override
    def form(self, state: State) -> Form:
        """A codebook of the same bytes."""
        return rounded(*self._standing(state))

    @override
    def watches(self, step: Step) -> bool:
        return self.share > 0

    @override
    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """Codes chosen anew where the gradient is largest."""
        return Revision({unit: self._moved(states[unit], gradient, step) for unit, gradient in gradients.items()}) if gradients else None

    def _moved(self, state: State, gradient: torch.Tensor, step: Step) -> State:
        mean = _MEAN * state["mean"] + (1 - _MEAN) * gradient
        square = _SQUARE * state["square"] + (1 - _SQUARE) * gradient.square()
        form = self.form(state)
        assert isinstance(form, Codebook)
        layout, (rows, columns) = form.layout, form.shape
        root = (square / (1 - _SQUARE**step.number)).sqrt()
        wide = lambda values: torch.nn.functional.pad(values, (0, -columns % layout.dimension)).view(rows, -1, layout.dimension)
        value, felt = form.value(), wide(mean)
        size = value.square().mean(1, keepdim=True).sqrt()
        few = self.share * (1 - step.share) * felt[..., 0].numel()
        count = int(few * step.number) - int(few * (step.number - 1))  # of less than one vector an update, one every so many updates
        chosen = felt.square().sum(2).flatten().topk(count).indices
        aim = wide((value - self.pace * size * mean / root.clamp_min(1e-30)) / form.scale.float().clamp_min(1e-30))
        codes, mean = form.codes.clone(), mean.clone()
        row, vector = chosen // felt.shape[1], chosen % felt.shape[1]
        for group, mine, some in layout.parts(columns):
            own = torch.isin(vector, mine)
            r, v = row[own], vector[own]
            found, entry = nearest(aim[r, v, :some], form.tables[group, :, :, :some].float())
            falls = (felt[r, v, :some] * (entry * form.scale.float()[r] - wide(value)[r, v, :some])).sum(1) < 0
            r, v = r[falls], v[falls]
            codes[r, :, v] = found[falls].to(torch.uint8)
            places = (v[:, None] * layout.dimension + torch.arange(layout.dimension)).clamp_max(columns - 1)
            mean[r[:, None], places] = 0
        return state.having(frozen={"codes": codes, "mean": mean, "square": square})
