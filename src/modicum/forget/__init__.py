"""Rows of data taken out of what a model learnt, with a check against a model that never saw them."""

from modicum.core.verbs import as_verb

__all__ = ["Forgotten", "forget"]

as_verb(__name__, "forgetting")
