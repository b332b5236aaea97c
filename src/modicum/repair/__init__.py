"""A few numbers added back where compression hurt most."""

from modicum.repair.eora import Eora

__all__ = ["Eora"]
