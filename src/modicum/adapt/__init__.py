"""A few trained numbers beside weights that stay as they are."""

from modicum.adapt.lora import Lora
from modicum.adapt.vera import Vera

__all__ = ["Lora", "Vera"]
