"""A few trained numbers beside weights that stay as they are."""

from modicum.adapt.adalora import Adalora
from modicum.adapt.apet import Apet
from modicum.adapt.bitfit import Bitfit
from modicum.adapt.bone import Bone
from modicum.adapt.bottleneck import Bottleneck
from modicum.adapt.clr import Clr
from modicum.adapt.codebook import Codebook
from modicum.adapt.compacter import Compacter
from modicum.adapt.connected import Connected
from modicum.adapt.dora import Dora
from modicum.adapt.dpt import Dpt
from modicum.adapt.dsee import Dsee
from modicum.adapt.ether import Ether
from modicum.adapt.ether_plus import EtherPlus
from modicum.adapt.fish import Fish
from modicum.adapt.flora import Flora
from modicum.adapt.full import Full
from modicum.adapt.ia3 import Ia3
from modicum.adapt.levi import Levi
from modicum.adapt.lisa import Lisa
from modicum.adapt.lora import Lora
from modicum.adapt.lora_ga import LoraGa
from modicum.adapt.memcontrol import Memcontrol
from modicum.adapt.mezo import Mezo
from modicum.adapt.norms import Norms
from modicum.adapt.ntk import Ntk
from modicum.adapt.pissa import Pissa
from modicum.adapt.prefix import Prefix
from modicum.adapt.prompt import Prompt
from modicum.adapt.ramt import Ramt
from modicum.adapt.rslora import Rslora
from modicum.adapt.sara import Sara
from modicum.adapt.shift import Shift
from modicum.adapt.snnk import Snnk
from modicum.adapt.sorsa import Sorsa
from modicum.adapt.subspace import Subspace
from modicum.adapt.telly import Telly
from modicum.adapt.topk import Topk
from modicum.adapt.vera import Vera
from modicum.adapt.vpt import Vpt
from modicum.core.verbs import as_verb

__all__ = [
    "Adalora",
    "Apet",
    "Bitfit",
    "Bone",
    "Bottleneck",
    "Clr",
    "Codebook",
    "Compacter",
    "Connected",
    "Dora",
    "Dpt",
    "Dsee",
    "Ether",
    "EtherPlus",
    "Fish",
    "Flora",
    "Full",
    "Ia3",
    "Levi",
    "Lisa",
    "Lora",
    "LoraGa",
    "Memcontrol",
    "Mezo",
    "Norms",
    "Ntk",
    "Pissa",
    "Prefix",
    "Prompt",
    "Ramt",
    "Rslora",
    "Sara",
    "Shift",
    "Snnk",
    "Sorsa",
    "Subspace",
    "Telly",
    "Topk",
    "Vera",
    "Vpt",
]

as_verb(__name__, "modicum.train.adapt")
