"""NTK-attention."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from typing_extensions import override

from modicum.core.aside import Aside, Call, Spot
from modicum.core.errors import ModelError
from modicum.core.method import Paper
from modicum.core.parametrization import State

_NAME = "modicum_ntk"
_NOW: ContextVar[Callable[[Any], tuple[torch.Tensor, torch.Tensor]]] = ContextVar(_NAME)


@dataclass(frozen=True, kw_only=True)
class Ntk(Aside):
    """A prefix without end, in closed form: attention's sum gains what an infinitely long trained prefix would add to it.

    ``(A V + φ(q) Z) / (A 1 + φ(q) k)`` in each head, with ``A = exp(q kᵀ / √d)``, ``φ = elu + 1``: Z and k begin at zero.

    *Shapes:* Z (layers, heads, d, d) and k (layers, heads, d), with d the width of a head.

    *Needs and cost:* no statistics; layers · heads · d · (d + 1) trained numbers, d² multiplications per head and token. Attention is computed in
    float32 with its whole matrix. No weight can hold it.

    *Reduces to:* the base at zero, up to rounding.

    *Raises:* ``ModelError`` for a model whose attention is not chosen by name, as that of Transformers is.

    *Differences from the paper:* heads have matrices of their own; the denominator is kept above a tenth of attention's own.

    Example:
        >>> str(Ntk())
        'ntk'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="Toward Infinite-Long Prefix in Transformer",
        arxiv="2406.14036",
        year=2024,
        authors="Yingyu Liang and Zhenmei Shi and Zhao Song and Chiwun Yang",
    )
    rate: ClassVar[float] = 3e-2

    @override
    def places(self, root: Any) -> list[str]:
        """The whole model."""
        if not getattr(root, "_supports_attention_backend", False) or not hasattr(getattr(root, "config", None), "_attn_implementation"):
            raise ModelError(f"{type(root).__name__}: must let its attention be chosen by name for {self} to compute it, does not.")
        return [""]

    @override
    def begin(self, spot: Spot) -> State:
        """Zeros."""
        config: Any = spot.root.config
        wide = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, config.num_attention_heads, wide)
        return State({"values": torch.zeros(*shape, wide), "mass": torch.zeros(shape)})

    @override
    def around(self, state: State, call: Call) -> Any:
        """A call whose attention is computed here."""
        _known()
        config: Any = call.root.config
        met: dict[int, int] = {}

        def of(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
            """By the attention's own number, or the order in which attentions are met."""
            layer = getattr(module, "layer_idx", None)
            layer = met.setdefault(id(module), len(met)) if layer is None else layer
            return state["values"][layer], state["mass"][layer]

        before, token = config._attn_implementation, _NOW.set(of)
        config._attn_implementation = _NAME
        try:
            return call.plain()
        finally:
            config._attn_implementation = before
            _NOW.reset(token)


def _known() -> None:
    """Let Transformers know the name."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if _NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, eager_mask)


def _attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float | None = None, **_: Any):
    values, mass = _NOW.get()(module)
    groups, wide = query.shape[1] // key.shape[1], query.shape[-1]
    key, value = (each.float().repeat_interleave(groups, 1) for each in (key, value))
    scores = query.float() @ key.transpose(2, 3) * (wide**-0.5 if scaling is None else scaling)
    scores = scores if mask is None else scores + mask[..., : key.shape[2]]
    top = scores.amax(-1, keepdim=True).clamp_min(0).detach()
    weights, features = (scores - top).exp(), (F.elu(query.float() * wide**-0.25) + 1) * (-top).exp()
    own = weights.sum(-1, keepdim=True)
    whole = torch.maximum(own + (features * mass[:, None]).sum(-1, keepdim=True), 0.1 * own)
    found = (weights @ value + features @ values) / whole
    return found.to(query.dtype).transpose(1, 2).contiguous(), None
