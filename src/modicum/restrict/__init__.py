"""Weights that are trained within what can be stored small: masks, grids, factors."""

from modicum.restrict.activating import Activating
from modicum.restrict.adaptive_precision import AdaptivePrecision
from modicum.restrict.bitnet import Bitnet
from modicum.restrict.dense import Dense
from modicum.restrict.dsl import Dsl
from modicum.restrict.freezenet import Freezenet
from modicum.restrict.gradient_flow import GradientFlow
from modicum.restrict.gradual import Gradual
from modicum.restrict.grasp import Grasp
from modicum.restrict.held import Held
from modicum.restrict.lapp import Lapp
from modicum.restrict.layer_tickets import LayerTickets
from modicum.restrict.low_rank import LowRank
from modicum.restrict.lsq import Lsq
from modicum.restrict.mpo import Mpo
from modicum.restrict.phm import Phm
from modicum.restrict.pst import Pst
from modicum.restrict.pv_tuning import PvTuning
from modicum.restrict.random import Random
from modicum.restrict.rigl import Rigl
from modicum.restrict.sbp_sr import SbpSr
from modicum.restrict.scales import Scales
from modicum.restrict.set import Set
from modicum.restrict.shapeshifter import Shapeshifter
from modicum.restrict.sltrain import Sltrain
from modicum.restrict.smp import Smp
from modicum.restrict.snip import Snip
from modicum.restrict.spdf import Spdf
from modicum.restrict.sr_ste import SrSte
from modicum.restrict.stable_rps import StableRps
from modicum.restrict.synflow import Synflow
from modicum.restrict.tickets import Tickets
from modicum.restrict.wgsef import Wgsef
from modicum.restrict.widenet import Widenet

__all__ = [
    "Activating",
    "AdaptivePrecision",
    "Bitnet",
    "Dense",
    "Dsl",
    "Freezenet",
    "GradientFlow",
    "Gradual",
    "Grasp",
    "Held",
    "Lapp",
    "LayerTickets",
    "LowRank",
    "Lsq",
    "Mpo",
    "Phm",
    "Pst",
    "PvTuning",
    "Random",
    "Rigl",
    "SbpSr",
    "Scales",
    "Set",
    "Shapeshifter",
    "Sltrain",
    "Smp",
    "Snip",
    "Spdf",
    "SrSte",
    "StableRps",
    "Synflow",
    "Tickets",
    "Wgsef",
    "Widenet",
]
