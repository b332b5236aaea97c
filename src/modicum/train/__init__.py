"""Training of parametrizations: any module's weights made of fewer numbers for a while, without surgery."""

from modicum.core.verbs import as_verb
from modicum.train.settings import Loop

__all__ = ["Loop"]

as_verb(__name__, "modicum.train.scratch")
