"""What vLLM makes of the modules of each architecture: one row each, read in its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The release whose loader the rows are of.
RELEASE = "0.33"
_QKV = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
_BOTH = _QKV | {"gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """``fused`` layers and the modules of a checkpoint that each takes the rows of; ``experts``: what gate, up and down projection of one expert
    are called in a checkpoint; ``head``: whether a quantized head is asked for.
    """

    fused: Mapping[str, tuple[str, ...]]
    experts: tuple[str, ...] = ()
    head: bool = True


_PLAIN = Architecture(fused=_BOTH)
_EXPERTS = Architecture(fused=_BOTH, experts=("gate_proj", "up_proj", "down_proj"))
# By the class of Transformers, without what all their names end in. From Arcee on vLLM has no class of its own and runs that of Transformers,
# in which it fuses the same. StableLM has none: its class does not say what it fuses, so that no target of a part is found and no file of it loads.
_ROWS = {
    **dict.fromkeys(("Exaone4", "Gemma", "Gemma2", "Gemma3", "Granite", "Llama", "Mistral", "Qwen2", "Qwen3"), _PLAIN),
    **dict.fromkeys(("Qwen2Moe", "Qwen3Moe", "Olmoe"), _EXPERTS),
    "Mixtral": Architecture(fused=_QKV, experts=("w1", "w3", "w2")),
    **dict.fromkeys(("Apertus", "Nemotron"), Architecture(fused=_QKV)),
    "OPT": Architecture(fused=_QKV, head=False),
    "Phi3": Architecture(fused={}),
    **dict.fromkeys(("Arcee", "Starcoder2"), Architecture(fused=_QKV)),
    **dict.fromkeys(("Olmo2", "Olmo3", "SmolLM3"), _PLAIN),
}


def row_of(cls: type) -> Architecture | None:
    """The row of a class of Transformers, or None."""
    return _ROWS.get(cls.__name__.removesuffix("ForCausalLM")) if cls.__name__.endswith("ForCausalLM") else None
