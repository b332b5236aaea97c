"""A model with a trimmed vocabulary against its original: on the tokens that stayed, and what those that went cost on the same text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from modicum.data.forward import own_errors
from modicum.data.splits import Batch, call
from modicum.judge.quality import plain
from modicum.sweep.outputs import output_tensor


@dataclass(frozen=True)
class Trim:
    """Both tokenizers, and the original's id of each token that stayed, by its new id."""

    original: Any
    trimmed: Any
    kept: Tensor

    def narrowed(self, module: nn.Module, rows: int) -> nn.Module:
        """The original as a model of the tokens that stayed, of which ``rows`` have an output in the trimmed one."""
        return _Narrowed(module, self.kept, rows)

    def facts(self, modules: Sequence[nn.Module], batches: Iterable[Batch], causal: bool) -> dict[str, Any]:
        """What the tokens that went cost on the text of ``batches``, as a JSON value.

        ``modules``: the original, the original as a model of the tokens that stayed, and the trimmed model. ``changed``: share of the original's
        tokens of the text that are spelled otherwise now. Of causal models ``lost_mass``: the probability that the original gives, in the mean,
        to tokens that went; ``bits_per_byte`` of each module, all on the same text, in the tokens each has for it.
        """
        texts = [text for batch in batches if isinstance(batch, dict) for text in map(self._text, batch["input_ids"]) if text]
        spelled = [(_encoded(self.original, text), _encoded(self.trimmed, text)) for text in texts]
        total = sum(len(before.ids) for before, _ in spelled)
        changed = sum((_tokens(before) - _tokens(after)).total() for before, after in spelled)
        found = {"tokens": len(self.kept), "of": len(self.original.get_vocab()), "changed": changed / max(1, total)}
        start = self._start()
        if not causal or not texts or start is None:
            return found
        original, narrow, trimmed = modules
        first = int(self.kept[start])
        old, new = [[first, *before.ids] for before, _ in spelled], [[start, *after.ids] for _, after in spelled]
        whole = list(_followed(original, old, self.kept))
        size = sum(len(text.encode()) for text in texts)
        nats = [sum(cost for cost, _ in whole), *(sum(cost for cost, _ in _followed(module, new)) for module in (narrow, trimmed))]
        per_byte = dict(zip(("original", "kept tokens", "model"), (value / math.log(2) / size for value in nats)))
        lost = 1 - sum(staying for _, staying in whole) / total
        return found | {"lost_mass": max(0.0, lost), "bytes": size, "bits_per_byte": per_byte}

    def _text(self, ids: Tensor) -> str:
        """The text of a window but for its last token, in whose place another begins what is spelled anew."""
        return str(self.trimmed.decode(ids[:-1].tolist(), clean_up_tokenization_spaces=False))

    def _start(self) -> int | None:
        """A token after which every token of a text is predicted; None where the tokenizer has none."""
        return next((index for index in (self.trimmed.bos_token_id, self.trimmed.eos_token_id) if index is not None), None)


class _Narrowed(nn.Module):
    """A model whose tokens are those of a trimmed vocabulary: ids go in by their new numbers, logits of the others are left out."""

    def __init__(self, module: nn.Module, kept: Tensor, rows: int):
        super().__init__()
        self.module, self.kept, self.rows = module, kept, rows
        self.config = getattr(module, "config", None)
        self.before = len(module.get_input_embeddings().weight)  # type: ignore[operator]

    def forward(self, **batch: Tensor) -> Any:
        inner: Batch = {name: self.kept[value] if name.endswith("input_ids") else value for name, value in batch.items()}
        with own_errors(self.module, inner):
            output = call(self.module, inner)
        return pytree.tree_map_only(Tensor, self._narrow, output)

    def _narrow(self, value: Tensor) -> Tensor:
        if not value.is_floating_point() or value.ndim < 2 or value.shape[-1] != self.before:
            return value
        made = value.new_full((*value.shape[:-1], self.rows), -math.inf)  # rows that pad the vocabulary are no tokens of the original
        made[..., : len(self.kept)] = value[..., self.kept]
        return made


def _encoded(tokenizer: Any, text: str) -> Any:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False).encodings[0]


def _tokens(encoding: Any) -> Counter[Any]:
    return Counter(zip(encoding.offsets, encoding.tokens))


@torch.no_grad()
def _followed(module: nn.Module, rows: Sequence[Sequence[int]], kept: Tensor | None = None) -> Iterator[tuple[float, float]]:
    """For each row the nats of all its tokens after the first, and what ``kept`` tokens have of the probability there, summed over positions."""
    batches: list[Batch] = [{"input_ids": torch.tensor([row])} for row in rows]
    for index, output in plain(module, batches):
        batch = batches[index]
        assert isinstance(batch, dict)
        log = output_tensor(output)[0][0, :-1].float().log_softmax(-1)
        nats = -log.gather(-1, batch["input_ids"][0, 1:, None]).double().sum()
        yield float(nats), 0.0 if kept is None else float(log[:, kept].logsumexp(-1).exp().double().sum())
