"""Weights that are trained within what can be stored small: masks, grids, factors."""

from modicum.restrict.bitnet import Bitnet
from modicum.restrict.dense import Dense
from modicum.restrict.held import Held
from modicum.restrict.rigl import Rigl
from modicum.restrict.scales import Scales
from modicum.restrict.sltrain import Sltrain
from modicum.restrict.snip import Snip

__all__ = ["Bitnet", "Dense", "Held", "Rigl", "Scales", "Sltrain", "Snip"]
