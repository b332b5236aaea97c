"""Fewer bits per weight."""

from modicum.quantize.float8 import Float8
from modicum.quantize.gptq import Gptq
from modicum.quantize.half import Half
from modicum.quantize.hqq import Hqq
from modicum.quantize.nearest import Nearest

__all__ = ["Float8", "Gptq", "Half", "Hqq", "Nearest"]
