"""Fewer bits per weight."""

from modicum.quantize.activations import Activations
from modicum.quantize.adaquant import Adaquant
from modicum.quantize.bitsandbytes import Bitsandbytes
from modicum.quantize.coded import Coded
from modicum.quantize.float4 import Float4
from modicum.quantize.float6 import Float6
from modicum.quantize.float8 import Float8
from modicum.quantize.ggml import Ggml
from modicum.quantize.gptq import Gptq
from modicum.quantize.gptvq import Gptvq
from modicum.quantize.half import Half
from modicum.quantize.hqq import Hqq
from modicum.quantize.kmeans import Kmeans
from modicum.quantize.nearest import Nearest
from modicum.quantize.watersic import Watersic
from modicum.quantize.zeroquant_fp import ZeroquantFp

__all__ = [
    "Activations",
    "Adaquant",
    "Bitsandbytes",
    "Coded",
    "Float4",
    "Float6",
    "Float8",
    "Ggml",
    "Gptq",
    "Gptvq",
    "Half",
    "Hqq",
    "Kmeans",
    "Nearest",
    "Watersic",
    "ZeroquantFp",
]
