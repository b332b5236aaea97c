"""Files a runtime loads: each target knows what it can hold, what that costs to the byte, how it is written and how it is verified."""

from modicum.export._family import Target
from modicum.export.container import Container, load
from modicum.export.gguf.target import Gguf
from modicum.export.hf import Transformers
from modicum.export.vllm.target import Vllm

TARGETS: dict[str, type[Target]] = {"transformers": Transformers, "modicum": Container, "vllm": Vllm, "gguf": Gguf}

__all__ = ["TARGETS", "Container", "Gguf", "Target", "Transformers", "Vllm", "load"]
