"""A few trained numbers beside weights that stay as they are."""

from modicum.adapt.bone import Bone
from modicum.adapt.ether import Ether
from modicum.adapt.ia3 import Ia3
from modicum.adapt.lora import Lora
from modicum.adapt.pissa import Pissa
from modicum.adapt.rslora import Rslora
from modicum.adapt.shift import Shift
from modicum.adapt.vera import Vera
from modicum.core.verbs import as_verb

__all__ = ["Bone", "Ether", "Ia3", "Lora", "Pissa", "Rslora", "Shift", "Vera"]

as_verb(__name__, "modicum.train.adapt")
