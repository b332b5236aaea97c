"""New tasks learnt one after the other, as deltas, so that the old ones are kept."""

from modicum.core.verbs import as_verb

__all__ = ["Learnt", "learn"]

as_verb(__name__, "learning")
