"""Several models made into one."""

from modicum.core.verbs import as_verb
from modicum.merge.average import Average
from modicum.merge.breadcrumbs import Breadcrumbs
from modicum.merge.dare import Dare
from modicum.merge.della import Della
from modicum.merge.karcher import Karcher
from modicum.merge.model_stock import ModelStock
from modicum.merge.multislerp import Multislerp
from modicum.merge.slerp import Slerp
from modicum.merge.soup import Soup
from modicum.merge.sparse_soup import SparseSoup
from modicum.merge.task_arithmetic import TaskArithmetic
from modicum.merge.ties import Ties
from modicum.merge.wise_ft import WiseFt

__all__ = [
    "Average",
    "Breadcrumbs",
    "Dare",
    "Della",
    "Karcher",
    "ModelStock",
    "Multislerp",
    "Slerp",
    "Soup",
    "SparseSoup",
    "TaskArithmetic",
    "Ties",
    "WiseFt",
]

as_verb(__name__, "modicum.merging.merge")
