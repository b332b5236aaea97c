"""Whole groups of weights gone: coupled cuts and spans of blocks."""

from modicum.drop.blocks import Blocks
from modicum.drop.bonsai import Bonsai
from modicum.drop.experts import Experts
from modicum.drop.fisher_masks import FisherMasks
from modicum.drop.flap import Flap
from modicum.drop.liar import Liar
from modicum.drop.replaceme import Replaceme
from modicum.drop.slimsam import Slimsam
from modicum.drop.taylor import Taylor
from modicum.drop.ziplm import Ziplm

__all__ = ["Blocks", "Bonsai", "Experts", "FisherMasks", "Flap", "Liar", "Replaceme", "Slimsam", "Taylor", "Ziplm"]
