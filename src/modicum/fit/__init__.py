"""The main job: open, measure, allocate, assemble, export, verify, and say what was done."""

from modicum.fit.run import Result, fit

__all__ = ["Result", "fit"]
