"""Important tokens (RSQ, arXiv 2503.01820): those that others attend to count for more in what layers are fitted on.

A token's importance in a block is the attention ``a`` that it receives there, over all heads and all that ask, between ``LEAST`` and 1 by its row's
least and largest: ``r = LEAST + (1 - LEAST) (a - min a) / (max a - min a)``. Inputs of the block's layers are multiplied by it before their products
are summed, so a token counts ``r²``; the mean of that over all tokens is kept at one. Attention is seen wherever a forward calls torch's own, or a
softmax of scores of (rows, heads, tokens, tokens), so no architecture is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.data.splits import Batch
from modicum.models.model import Model
from modicum.sweep import Script
from modicum.sweep.important import Important, tokens_of
from modicum.sweep.suspend import Arrival, Chain, Stop

LEAST = 0.01
_SOFTMAX = {F.softmax, torch.softmax, torch.Tensor.softmax}


def attended(model: Model, script: Script, batches: Sequence[Batch]) -> Important:
    """How much each token of ``batches`` counts in each block, by attention that it receives in the original.

    Needs and cost: one block in memory at a time, two forwards, scores of one row. Raises ``ModelError`` where there are no token ids, or no
    attention.
    """
    found = Important()
    with torch.no_grad():
        for batch in batches:
            ids = tokens_of(batch)
            if ids is None:
                raise ModelError(f"{model.name}: must be given token ids to weigh them, is not. Leave importance out.")
            for block, received in _received(model, script, batch, ids):
                found.add(block, ids, _between(received))
    if not found.blocks:
        raise ModelError(
            f"{model.name}: must attend from tokens to tokens within its blocks to weigh them, does not. Leave importance out."
        )
    return found.even()


def _between(received: torch.Tensor) -> torch.Tensor:
    least, most = received.amin(1, keepdim=True), received.amax(1, keepdim=True)
    return LEAST + (1 - LEAST) * (received - least) / (most - least).clamp_min(1e-30)


def _received(model: Model, script: Script, batch: Batch, ids: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """By block the attention that each token (rows, tokens) receives."""
    found: list[tuple[str, torch.Tensor]] = []
    chain = Chain(model.module, [batch], [], model.blocks, script.carried, seeds=script.seeds([batch]))

    def work(stop: Stop, arrivals: list[tuple[int, Arrival]], complete: bool) -> Iterator[tuple[int, Any]]:
        (index, arrival), parameters = arrivals[0], model.blocks[stop.name].parameters
        if stop.kind == "enter":
            model.weights.load(parameters)
            watch = _Watch(ids.shape)
            arrival.within(lambda: watch.run(chain.original(stop.name), arrival))
            found.extend([] if watch.received is None else [(stop.name, watch.received)])
            yield index, None
        else:
            model.weights.release(parameters)
            yield index, arrival.output

    model.weights.load(model.trunk)
    for _ in chain.run(work):
        pass
    return found


class _Watch(TorchFunctionMode):
    """Sums the attention that tokens (rows, tokens) receive in all that runs inside."""

    def __init__(self, shape: torch.Size):
        super().__init__()
        self.shape = shape
        self.received: torch.Tensor | None = None

    def run(self, forward: Any, arrival: Arrival) -> None:
        """What a block does with what it was given."""
        with self:
            forward(*arrival.args, **(arrival.kwargs or {}))

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self._add(_attention(*args, **kwargs))
        elif func in _SOFTMAX and made.ndim == 4:
            self._add(made.float().sum((1, 2)))
        return made

    def _add(self, received: torch.Tensor) -> None:
        if received.shape == self.shape:
            self.received = received if self.received is None else self.received + received


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Attention that keys receive (rows, keys), over all heads and queries; arguments as torch's own function has them."""
    if query.ndim != 4:
        return torch.empty(0)
    found, (asked, given) = [], (query.shape[-2], key.shape[-2])
    later = torch.ones(asked, given, dtype=torch.bool, device=query.device).triu(1) if is_causal else None
    for row in range(len(query)):
        keys = key[row].float().repeat_interleave(query.shape[1] // key.shape[1], 0)
        scores = query[row].float() @ keys.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if attn_mask is not None:
            mask = attn_mask.expand(len(query), *attn_mask.shape[1:])[row] if attn_mask.ndim == 4 else attn_mask
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        scores = scores if later is None else scores.masked_fill(later, -torch.inf)
        found.append(scores.softmax(-1).nan_to_num().sum((0, 1)))
    return torch.stack(found)
