"""Adapters of PEFT: read as deltas, and deltas written as such adapters."""

from modicum.delta.peft.reading import from_peft, is_peft
from modicum.delta.peft.writing import to_peft

__all__ = ["from_peft", "is_peft", "to_peft"]
