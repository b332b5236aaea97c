"""One sweep on the original: the model and its sequences, what every option harms, and the measurement on disk.

``modicum.measure`` is this folder and the function: calling the module calls ``measure``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modicum.core.verbs import as_verb

if TYPE_CHECKING:
    from modicum.measure.measured import Measured, measure

__all__ = ["Measured", "measure"]


as_verb(__name__, "measured")
