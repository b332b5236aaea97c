"""One engine for all calibration: every micro-batch's own forward, suspended at the same call."""

from modicum.sweep.engine import Sweep
from modicum.sweep.rehearsal import rehearse
from modicum.sweep.reverse import Sensitivity, output_gradients
from modicum.sweep.script import Script
from modicum.sweep.stage import Stage

__all__ = ["Script", "Sensitivity", "Stage", "Sweep", "output_gradients", "rehearse"]
