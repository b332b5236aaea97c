"""A small transformer on patches of digits, of blocks that all have the same places: its feed-forward part whole or of experts."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, PATCH = 32, 4, 4


class Expert(nn.Module):
    """A feed-forward part."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, inner, bias=False), nn.Linear(inner, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As wide as it came."""
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and a feed-forward part; of experts each token takes two, in the proportions of the router."""

    def __init__(self, inner: int, experts: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.router = nn.Linear(WIDTH, experts, bias=False) if experts > 1 else None
        self.parts = nn.ModuleList(Expert(inner) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (pictures, tokens, width)."""
        q, k, v = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in self.qkv(self.first(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        seen = self.second(x)
        if self.router is None:
            return x + self.parts[0](seen)
        top = self.router(seen).softmax(-1).topk(2)
        share = torch.zeros(*seen.shape[:2], len(self.parts)).scatter(-1, top.indices, top.values)
        return x + sum(share[..., place, None] * part(seen) for place, part in enumerate(self.parts))


class Patches(nn.Module):
    """A table of places, blocks, a norm, a mean, a head."""

    def __init__(self, depth: int, inner: int, experts: int = 1) -> None:
        super().__init__()
        self.stem, self.places = nn.Linear(3 * PATCH * PATCH, WIDTH), nn.Parameter(0.02 * torch.randn(16, WIDTH))
        self.blocks = nn.ModuleList(Block(inner, experts) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of pictures (pictures, 3, 16, 16)."""
        x = self.stem(F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def plan(model: nn.Module, method: str) -> dict[str, str]:
    """The blocks' matrices under a method, all else dense."""
    return {name: method if name.startswith("blocks") and value.ndim == 2 else "dense" for name, value in model.named_parameters()}
