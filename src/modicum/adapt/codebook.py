"""A codebook beside a block: inputs near a key get the key's value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.adapt._added import Added, width
from modicum.core.aside import Call, Spot
from modicum.core.method import Paper
from modicum.core.parametrization import State


@dataclass(frozen=True, kw_only=True)
class Codebook(Added):
    """Where what a part of a block gives lies within the radius of its nearest key, the key's value is added to it.

    ``y + values[i]`` with ``i`` the nearest of the keys, where ``|y - keys[i]| <= radii[i]``; elsewhere ``y`` stays the same bits.

    *Shapes:* keys and values (entries, width), radii (entries,).

    *Needs and cost:* no statistics; a distance to each key per token. No weight can hold it.

    *Reduces to:* a bias of the part's output with one key that takes every input, where training begins.

    *Raises:* ``ModelError`` for a model without blocks.

    *Differences from the paper:* values are added rather than put in the place of an output; editors write entries, see ``grace``.

    Example:
        >>> str(Codebook())
        'codebook'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors",
        arxiv="2211.11031",
        year=2022,
        authors="Thomas Hartvigsen and Swami Sankaranarayanan and Hamid Palangi and Yoon Kim and Marzyeh Ghassemi",
    )
    rate: ClassVar[float] = 3e-2

    @override
    def begin(self, spot: Spot) -> State:
        """One key that takes every input, of value zero."""
        wide = width(spot)
        return State({"values": torch.zeros(1, wide)}, {"keys": torch.zeros(1, wide), "radii": torch.full((1,), float("inf"))})

    @override
    def adds(self, state: State, stream: torch.Tensor, call: Call) -> torch.Tensor:
        """The values of those that a key takes."""
        return self.added(state, stream)

    def added(self, state: State, stream: torch.Tensor) -> torch.Tensor:
        """What is added to a stream (..., width), float32."""
        apart, nearest = torch.cdist(stream.flatten(0, -2), state["keys"], compute_mode="donot_use_mm_for_euclid_dist").min(1)
        taken = (apart <= state["radii"][nearest]).reshape(*stream.shape[:-1], 1)
        return torch.where(taken, state["values"][nearest].reshape(stream.shape), torch.zeros_like(stream))
