"""Fewer weights that are not zero."""

from modicum.prune.dpruner import Dpruner
from modicum.prune.dsnot import Dsnot
from modicum.prune.gblm import Gblm
from modicum.prune.magnitude import Magnitude
from modicum.prune.mfac import Mfac
from modicum.prune.sparsegpt import Sparsegpt
from modicum.prune.wanda import Wanda

__all__ = ["Dpruner", "Dsnot", "Gblm", "Magnitude", "Mfac", "Sparsegpt", "Wanda"]
