"""One sweep on the original: the model and its sequences, what every option harms, and the measurement on disk.

``modicum.measure`` is this folder and the function: calling the module calls ``measure``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modicum.core.verbs import as_verb

if TYPE_CHECKING:
    from modicum.measure.measured import Measured, measure

__all__ = ["Measured", "measure"]


def __getattr__(name: str) -> Any:
    """What the folder gives, imported when it is first used: its settings alone load nothing heavy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from modicum.measure import measured

    return getattr(measured, name)


as_verb(__name__)
