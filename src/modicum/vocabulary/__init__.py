"""A checkpoint whose vocabulary holds what a corpus needs, with the logits of the tokens that stay unchanged."""

from modicum.vocabulary.trim import Trimmed, trim

__all__ = ["Trimmed", "trim"]
