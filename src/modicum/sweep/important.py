"""How much each token counts in the sums over a unit's inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from modicum.data.splits import Batch


def tokens_of(batch: Batch) -> torch.Tensor | None:
    """Token ids (rows, tokens) of a batch; None where it has none."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return ids if ids is not None and ids.ndim == 2 else None


def _key(row: torch.Tensor) -> bytes:
    return hashlib.sha256(row.cpu().contiguous().numpy().tobytes()).digest()


@dataclass
class Important:
    """Factors of tokens by block and by the ids of their row, so that batches may be divided otherwise than they were."""

    blocks: dict[str, dict[bytes, torch.Tensor]] = field(default_factory=dict)

    def add(self, block: str, ids: torch.Tensor, factors: torch.Tensor) -> None:
        """Add those (rows, tokens) of rows of ``ids``."""
        self.blocks.setdefault(block, {}).update({_key(row): factor for row, factor in zip(ids, factors)})

    def even(self) -> Important:
        """The same with a mean square of one in each block, so that sums keep their size."""
        for rows in self.blocks.values():
            mean = torch.stack([factors.square().mean() for factors in rows.values()]).mean().sqrt()
            rows.update({key: factors / mean for key, factors in rows.items()})
        return self

    def weighed(self, block: str, batch: Batch, value: torch.Tensor) -> torch.Tensor:
        """An input (rows, tokens, columns) of a block's unit times its tokens' factors; as it is where its rows or tokens are others."""
        known, ids = self.blocks.get(block), tokens_of(batch)
        if known is None or ids is None or value.shape[:-1] != ids.shape:
            return value
        rows = [known.get(_key(row)) for row in ids]
        found = [row for row in rows if row is not None]
        return value if len(found) < len(rows) else value.float() * torch.stack(found).to(value.device)[..., None]
