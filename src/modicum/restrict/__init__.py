"""Weights that are trained within what can be stored small: masks, grids, factors."""

from modicum.restrict.bitnet import Bitnet
from modicum.restrict.rigl import Rigl
from modicum.restrict.sltrain import Sltrain

__all__ = ["Bitnet", "Rigl", "Sltrain"]
