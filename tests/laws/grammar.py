"""Random modules composed from a grammar: what people bring, in small. One number makes one module, with batches that suit it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, VOCABULARY, TIME, SIDE = 16, 32, 6, 8
_DTYPES = (torch.float32,) * 7 + (torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Sentence:
    """A module, batches for it, and the words of the grammar that it is made of."""

    module: nn.Module
    batches: list[Any]
    words: tuple[str, ...]


# Parts that keep (batch, ..., width): each a line of the grammar.


class Residual(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Branches(nn.Module):
    """Two readers of one tensor, the second perhaps after it was changed in place."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.changed = chance.random() < 0.4

    def forward(self, x):
        x = x.clone()
        left = self.left(x)
        if self.changed:
            x.mul_(2).relu_()
        return left + self.right(x)


class Gated(nn.Module):
    def __init__(self, chance: random.Random):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x):
        return self.down(F.silu(self.gate(input=x)) * self.up(x))


class Shared(nn.Module):
    """One layer that is called twice."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.layer(F.gelu(self.layer(x)))


class Remembering(nn.Module):
    """What was computed first waits on the module itself."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        self.kept = self.first(x)
        return self.second(F.relu(x)) + self.kept


class Autocast(nn.Module):
    def __init__(self, chance: random.Random):
        super().__init__()
        self.inside, self.outside = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.inside(x)
        return self.outside(y.to(x.dtype))


class Normed(nn.Module):
    def __init__(self, chance: random.Random):
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=chance.random() < 0.5)

    def forward(self, x):
        return self.layer(self.norm(x))


class Bare(nn.Module):
    """A matrix that is no layer."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)

    def forward(self, x):
        return x @ self.matrix


class Blocks(nn.Module):
    """A list of blocks, one of which may stand there twice."""

    def __init__(self, chance: random.Random):
        super().__init__()
        blocks = [Residual(Gated(chance)) for _ in range(chance.randint(1, 3))]
        self.layers = nn.ModuleList(blocks + ([blocks[0]] if chance.random() < 0.3 else []))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


POINTWISE: dict[str, Callable[[random.Random], nn.Module]] = {
    "linear": lambda chance: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=chance.random() < 0.5)),
    "branches": Branches, "gated": Gated, "shared layer": Shared, "state on self": Remembering, "autocast": Autocast, "normed": Normed,
    "bare matrix": Bare, "blocks": Blocks,
}  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, chance: random.Random):
        super().__init__()
        both = chance.random() < 0.4
        kind = chance.choice([nn.LSTM, nn.GRU, nn.RNN])
        self.cell = kind(WIDTH, WIDTH // 2 if both else WIDTH, num_layers=chance.randint(1, 2), batch_first=True, bidirectional=both)

    def forward(self, x):
        return self.cell(x)[0]


class Packed(nn.Module):
    """torch's own attention, with its projections in one matrix."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x, padding=None):
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]


class Grouped(nn.Module):
    """Attention whose keys are fewer than its queries, with a step between the readers of one tensor."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.low, self.query = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.key, self.value, self.out = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, padding=None):
        split = lambda value: value.unflatten(-1, (-1, 8)).transpose(1, 2)
        query = split(self.query(F.gelu(self.low(x))))
        key, value = (split(part(x)).expand(-1, 2, -1, -1) for part in (self.key, self.value))
        mask = None if padding is None else ~padding[:, None, None]
        return self.out(F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    def __init__(self, chance: random.Random):
        super().__init__()
        first = chance.random() < 0.5
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True, norm_first=first)
        self.layers = nn.TransformerEncoder(layer, chance.randint(1, 2), enable_nested_tensor=not first)

    def forward(self, x, padding=None):
        return self.layers(x, src_key_padding_mask=padding)


class Along(nn.Module):
    """A convolution along time."""

    def __init__(self, chance: random.Random):
        super().__init__()
        groups = chance.choice([1, 1, WIDTH])
        self.layer = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=groups, padding_mode=chance.choice(["zeros", "zeros", "replicate"]))

    def forward(self, x):
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


ALONG: dict[str, Callable[[random.Random], nn.Module]] = {
    "recurrent": Recurrent, "packed attention": Packed, "grouped attention": Grouped, "encoder": Encoder, "convolution along": Along,
}  # fmt: skip


class Split(nn.Module):
    """Two convolutions of one image: other kernels, dilations or strides."""

    def __init__(self, chance: random.Random):
        super().__init__()
        dilation = chance.choice([1, 2])
        self.left = nn.Conv2d(WIDTH, WIDTH, chance.choice([1, 3]), padding="same")
        self.right = nn.Conv2d(
            WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, padding_mode=chance.choice(["zeros", "circular", "reflect"])
        )

    def forward(self, x):
        return F.relu(self.left(x) + self.right(x), inplace=True)


class Depthwise(nn.Module):
    def __init__(self, chance: random.Random):
        super().__init__()
        self.norm, self.deep, self.point = (
            nn.BatchNorm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 1),
        )

    def forward(self, x):
        x = self.norm(x)
        return self.deep(x) + self.point(x)


class DownUp(nn.Module):
    def __init__(self, chance: random.Random):
        super().__init__()
        self.down, self.up = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1), nn.ConvTranspose2d(WIDTH, WIDTH, 4, stride=2, padding=1)

    def forward(self, x):
        self.skip = x
        return self.up(F.gelu(self.down(x))) + self.skip


IMAGE: dict[str, Callable[[random.Random], nn.Module]] = {"split": Split, "depthwise": Depthwise, "down and up": DownUp}


# What goes in.


class Net(nn.Module):
    """Stem, parts and ending; ``padding`` marks what is none of a row's tokens."""

    def __init__(self, stem: nn.Module | None, parts: list[nn.Module], end: nn.Module, masked: bool = False):
        super().__init__()
        self.stem, self.parts, self.end, self.masked = stem or nn.Identity(), nn.Sequential(*parts), end, masked

    def forward(self, x, padding=None):
        x = self.stem(x)
        for part in self.parts:
            x = part(x, padding) if self.masked and isinstance(part, Packed | Grouped | Encoder) else part(x)
        return self.end(x)


class Ending(nn.Module):
    """What comes out: a tensor, several, or scores under a name."""

    def __init__(self, kind: str, image: bool = False):
        super().__init__()
        layer = (lambda width: nn.Conv2d(WIDTH, width, 1)) if image else (lambda width: nn.Linear(WIDTH, width))
        self.kind, self.image = kind, image
        self.head = layer({"score": 1, "classes": 5}.get(kind, WIDTH))
        self.other = layer(4) if kind in ("pair", "named pair") else None

    def forward(self, x):
        if self.kind == "pooled":
            x = x.mean((2, 3), keepdim=True) if self.image else x.mean(1) if x.ndim > 2 else x
        first = self.head(x)
        if self.kind in ("classes", "score"):
            return SimpleOutput(logits=first)
        if self.other is not None:
            second = self.other(x)
            return (first, second) if self.kind == "pair" else {"features": first, "boxes": second}
        return first


class SimpleOutput(SimpleNamespace):
    def values(self):
        return list(vars(self).values())


ENDINGS = ("plain", "plain", "pooled", "pair", "named pair", "score", "classes")


def compose(seed: int) -> Sentence:
    """The module of a number."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    kind = chance.choice(["features", "tokens", "tokens", "series", "series", "images"])
    ending, words = chance.choice(ENDINGS), [kind]
    grammar = {"features": POINTWISE, "images": IMAGE}.get(kind, POINTWISE | ALONG)
    parts = []
    for word in chance.choices(sorted(grammar), k=chance.randint(1, 3)):
        part = grammar[word](chance)
        parts.append(Residual(part) if chance.random() < 0.3 and kind != "images" and word not in ALONG else part)
        words.append(word)
    stem = {"tokens": lambda: nn.Embedding(VOCABULARY, WIDTH), "images": lambda: nn.Conv2d(3, WIDTH, 3, padding=1)}.get(
        kind, lambda: None
    )()
    masked = kind in ("tokens", "series") and chance.random() < 0.3
    dtype = chance.choice(_DTYPES)
    module = Net(stem, parts, Ending(ending, image=kind == "images"), masked).to(dtype).train(chance.random() < 0.3)
    words += [ending, str(dtype)[6:], *(["masked"] if masked else [])]
    form = chance.choice(["tensor", "tuple", "keywords"])
    return Sentence(module, [_batch(kind, masked, dtype, form) for _ in range(8)], (*words, form))


def _batch(kind: str, masked: bool, dtype: torch.dtype, form: str) -> Any:
    shape = {"features": (4, WIDTH), "series": (4, TIME, WIDTH), "images": (2, 3, SIDE, SIDE), "tokens": (4, TIME)}[kind]
    value = torch.randint(VOCABULARY, shape) if kind == "tokens" else torch.randn(shape).to(dtype)
    if masked:
        padding = torch.arange(TIME) >= torch.randint(2, TIME + 1, (4, 1))
        return (value, padding) if form != "keywords" else {"x": value, "padding": padding}
    return {"tensor": value, "tuple": (value,), "keywords": {"x": value}}[form]
