"""One engine for all calibration: every micro-batch's own forward, suspended at the same call."""

from modicum.sweep.engine import Stage, Sweep
from modicum.sweep.rehearsal import Script, rehearse
from modicum.sweep.reverse import Sensitivity, output_gradients

__all__ = ["Script", "Sensitivity", "Stage", "Sweep", "output_gradients", "rehearse"]
