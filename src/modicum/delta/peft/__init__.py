"""Adapters of PEFT: read as deltas, and deltas written as such adapters."""

from modicum.delta.peft.reading import from_peft, is_peft
from modicum.delta.peft.writing import factors, to_peft

__all__ = ["factors", "from_peft", "is_peft", "to_peft"]
