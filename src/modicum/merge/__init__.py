"""Several models made into one."""

from modicum.core.verbs import as_verb
from modicum.merge.afl import Afl
from modicum.merge.average import Average
from modicum.merge.breadcrumbs import Breadcrumbs
from modicum.merge.dare import Dare
from modicum.merge.della import Della
from modicum.merge.delta_editing import DeltaEditing
from modicum.merge.fisher import Fisher
from modicum.merge.karcher import Karcher
from modicum.merge.model_stock import ModelStock
from modicum.merge.multislerp import Multislerp
from modicum.merge.passthrough import Passthrough
from modicum.merge.pcb import Pcb
from modicum.merge.regmean import Regmean
from modicum.merge.robust_signature import RobustSignature
from modicum.merge.sce import Sce
from modicum.merge.slerp import Slerp
from modicum.merge.soup import Soup
from modicum.merge.sparse_soup import SparseSoup
from modicum.merge.straggler import Straggler
from modicum.merge.task_arithmetic import TaskArithmetic
from modicum.merge.ties import Ties
from modicum.merge.tsv import Tsv
from modicum.merge.wise_ft import WiseFt

__all__ = [
    "Afl",
    "Average",
    "Breadcrumbs",
    "Dare",
    "Della",
    "DeltaEditing",
    "Fisher",
    "Karcher",
    "ModelStock",
    "Multislerp",
    "Passthrough",
    "Pcb",
    "Regmean",
    "RobustSignature",
    "Sce",
    "Slerp",
    "Soup",
    "SparseSoup",
    "Straggler",
    "TaskArithmetic",
    "Ties",
    "Tsv",
    "WiseFt",
]

as_verb(__name__, "modicum.merging.merge")
