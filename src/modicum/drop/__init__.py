"""Whole groups of weights gone: coupled cuts and spans of blocks."""

from modicum.drop.blocks import Blocks
from modicum.drop.experts import Experts
from modicum.drop.flap import Flap
from modicum.drop.liar import Liar
from modicum.drop.replaceme import Replaceme
from modicum.drop.ziplm import Ziplm

__all__ = ["Blocks", "Experts", "Flap", "Liar", "Replaceme", "Ziplm"]
