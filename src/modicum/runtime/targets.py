"""Which runtime a target is written for, where it is not PyTorch."""

from modicum.runtime.llama_cpp import LlamaCpp
from modicum.runtime.runtime import Runtime
from modicum.runtime.vllm import Vllm

RUNTIMES: dict[str, type[Runtime]] = {"gguf": LlamaCpp, "vllm": Vllm}
