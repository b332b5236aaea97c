"""A few trained numbers beside weights that stay as they are."""

from modicum.adapt.lora import Lora
from modicum.adapt.vera import Vera
from modicum.core.verbs import as_verb

__all__ = ["Lora", "Vera"]

as_verb(__name__, "modicum.train.adapt")
