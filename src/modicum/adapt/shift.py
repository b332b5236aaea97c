"""Shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from modicum.adapt._family import AddedAdapter


@dataclass(frozen=True, kw_only=True)
class Shift(AddedAdapter):
    """A trained number is added to every entry: full fine-tuning told as a change, of whichever parameters a plan names.

    ``W + change``: the plan says of which, as in ``{"*.q_proj": "shift"}``; of biases it is ``bitfit``.

    *Shapes:* change (rows, columns); a vector is one row.

    *Needs and cost:* no statistics; rows · columns trained numbers.

    *Reduces to:* the base with the change at zero, where training begins.

    *Raises:* nothing of its own.

    *Differences from the paper:* there is none.

    Example:
        >>> str(Shift())
        'shift'

    """

    rate: ClassVar[float] = 1.3e-3
