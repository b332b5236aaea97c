"""Facts that a model is taught, exactly and reversibly, by changes that are worked out rather than trained for long."""

from modicum.core.verbs import as_verb

__all__ = ["Edited", "edit"]

as_verb(__name__, "editing")
