"""What changes a model, told by form: applied, scaled, added, saved and taken back exactly."""

from modicum.delta.beside import Beside
from modicum.delta.delta import Delta

__all__ = ["Beside", "Delta"]
