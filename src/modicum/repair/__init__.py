"""Numbers added back where compression hurt most, or moved to where it hurts least."""

from modicum.repair.eora import Eora
from modicum.repair.refine import Refine

__all__ = ["Eora", "Refine"]
