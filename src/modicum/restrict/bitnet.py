"""BitNet b1.58."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.parametrization import Start, State, Step
from modicum.core.settings import param
from modicum.forms import Activated, Integer
from modicum.forms.activated import Rounding
from modicum.restrict._family import Restriction, beginning, scaled, through

if TYPE_CHECKING:
    from modicum.forms import Form


@dataclass(frozen=True, kw_only=True)
class Bitnet(Restriction):
    """Weights of minus one, zero and one under one scale, and inputs in eight bits, both rounded with a straight-through gradient.

    ``clip(round(W / s), -1, 1) · s`` with ``s`` the mean magnitude of the latent weight, or its median.

    *Shapes:* latent (rows, columns), trained; one scale for all of it.

    *Needs and cost:* no statistics; rows · columns trained numbers, of which two bits each are stored.

    *Reduces to:* the plain weight where that is ternary already.

    *Raises:* ``SettingError`` for weights whose scale overflows.

    *Differences from the paper:* norms before the products stay where the model has them.

    Example:
        >>> str(Bitnet(scale="median"))
        'bitnet scale=median'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits",
        arxiv="2402.17764",
        year=2024,
        authors="Shuming Ma and Hongyu Wang and Lingxiao Ma and Lei Wang and Wenhui Wang and Shaohan Huang and Li Dong and others",
    )

    scale: str = param("mean", "what of the magnitudes is the scale", choices=("mean", "median"))
    inputs_in: str = param("int8", "numbers that inputs are rounded to", choices=("int8", "float"))

    @override
    def begin(self, start: Start) -> State:
        """The latent weight."""
        latent = beginning(start)
        scaled(self._codes(latent)[1], start.unit)
        return State({"latent": latent}, base=start.base)

    def _codes(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = latent.abs()
        scale = (size.mean() if self.scale == "mean" else size.median()).clamp_min(1e-8)
        return (latent / scale).round().clamp(-1, 1), scale

    @override
    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The ternary weight; its gradient is the latent one's."""
        codes, scale = self._codes(state["latent"].detach())
        return through(state["latent"], codes * scale)

    @override
    @property
    def treats_inputs(self) -> bool:
        """Unless inputs stay floats."""
        return self.inputs_in != "float"

    @override
    def inputs(self, state: State, x: torch.Tensor, step: Step) -> torch.Tensor:
        """Inputs in eight bits, a scale per token."""
        return x if self.inputs_in == "float" else through(x, Rounding("int8")(x.detach()))

    @override
    def form(self, state: State) -> Form:
        """Codes of two bits under one scale, and the inputs' rounding."""
        codes, scale = self._codes(state["latent"].detach())
        stored = Integer((codes + 2).to(torch.uint8), scale.reshape(1, 1), None, bits=2, group=0)
        return stored if self.inputs_in == "float" else Activated(stored, Rounding("int8"))
