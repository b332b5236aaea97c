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
from torch.nn.utils import parametrizations as norms
from torch.utils.checkpoint import checkpoint

WIDTH, VOCABULARY, TIME, SIDE = 16, 32, 6, 8
_DTYPES = (torch.float32,) * 7 + (torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Sentence:
    """A module, batches for it, and the words of the grammar that it is made of."""

    module: nn.Module
    batches: list[Any]
    words: tuple[str, ...]
    masked: str = ""


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


class Listed(nn.Module):
    """Matrices in a list and in a dictionary."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.some = nn.ParameterList([torch.randn(WIDTH, WIDTH) / 4 for _ in range(2)])
        self.named = nn.ParameterDict({"up": torch.randn(WIDTH, WIDTH) / 4, "shift": torch.zeros(WIDTH)})
        self.chained = chance.random() < 0.5

    def forward(self, x):
        if self.chained:
            x = torch.linalg.multi_dot([x.reshape(-1, WIDTH), *self.some]).reshape(x.shape)
        else:
            for matrix in self.some:
                x = torch.einsum("...i,ij->...j", x, matrix)
        return F.linear(x, self.named["up"], self.named["shift"])


class Computed(nn.Module):
    """A weight that is computed from what is stored."""

    def __init__(self, chance: random.Random):
        super().__init__()
        way = chance.choice([norms.weight_norm, norms.spectral_norm, norms.orthogonal])
        self.layer = way(nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return self.layer(F.relu(x))


class Routed(nn.Module):
    """Experts that meet the tokens which chose them."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.router, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList(Gated(chance) for _ in range(3))

    def forward(self, x):
        flat = x.reshape(-1, WIDTH)
        weights, chosen = self.router(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            row, place = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, row, weights[row, place, None] * expert(flat[row]))
        return out.reshape(x.shape)


class Stacked(nn.Module):
    """Experts in one parameter of three axes, all of which every token meets."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(2, 24, WIDTH) / 4), nn.Parameter(torch.randn(2, WIDTH, 24) / 5)

    def forward(self, x):
        return sum(F.linear(F.silu(F.linear(x, up)), down) for up, down in zip(self.up, self.down))


class Tied(nn.Module):
    """Two layers of one weight, and the weight turned."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight, self.turned = self.first.weight, chance.random() < 0.4

    def forward(self, x):
        x = self.second(F.gelu(self.first(x)))
        return F.linear(x, self.first.weight.T) if self.turned else x


class Unfelt(nn.Module):
    """A part without gradients, and one computed anew for them."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.still, self.anew = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        with torch.no_grad():
            y = self.still(x)
        return checkpoint(self.anew, x, use_reentrant=False) + y


class Waves(nn.Module):
    """Numbers with an imaginary part on the way."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        waves = torch.fft.rfft(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
        return self.layer(torch.fft.irfft(waves * 2, n=WIDTH).to(x.dtype))


POINTWISE: dict[str, Callable[[random.Random], nn.Module]] = {
    "linear": lambda chance: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=chance.random() < 0.5)),
    "branches": Branches, "gated": Gated, "shared layer": Shared, "state on self": Remembering, "autocast": Autocast, "normed": Normed,
    "bare matrix": Bare, "blocks": Blocks, "lists of matrices": Listed, "computed weight": Computed, "routed": Routed, "stacked": Stacked,
    "tied": Tied, "unfelt": Unfelt, "waves": Waves,
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


class Crossed(nn.Module):
    """torch's own attention to a memory of another width, or under a causal mask of its own."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.causal = chance.random() < 0.5
        self.memory = nn.Linear(WIDTH, 8)
        self.attention = nn.MultiheadAttention(WIDTH, 2, kdim=8, vdim=8, batch_first=True, bias=chance.random() < 0.5)

    def forward(self, x):
        memory, mask = self.memory(x), None
        if self.causal:
            mask = torch.full((x.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)
        return self.attention(x, key=memory, value=memory, attn_mask=mask, need_weights=False)[0]


class Biased(nn.Module):
    """Attention of one head whose scores take a table's values of how far apart tokens are."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.all, self.out, self.apart = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.Embedding(2 * TIME, 1)

    def forward(self, x):
        query, key, value = self.all(x).chunk(3, -1)
        places = torch.arange(x.shape[1])
        scores = query @ key.transpose(1, 2) / 4 + self.apart(places[:, None] - places + TIME)[..., 0]
        return self.out(scores.softmax(-1) @ value)


class Stepwise(nn.Module):
    """A recurrent cell that forward calls once for each token."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.cell = chance.choice([nn.LSTMCell, nn.GRUCell, nn.RNNCell])(WIDTH, WIDTH)

    def forward(self, x):
        state, found = None, []
        for token in x.unbind(1):
            state = self.cell(token, state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(found, 1)


class Wider(nn.Module):
    """Along time to half the length and back, in groups."""

    def __init__(self, chance: random.Random):
        super().__init__()
        groups = chance.choice([1, 2])
        self.down = nn.Conv1d(WIDTH, 8, 2, stride=2, groups=groups)
        self.up = nn.ConvTranspose1d(8, WIDTH, 2, stride=2, groups=groups)

    def forward(self, x):
        return self.up(F.elu(self.down(x.transpose(1, 2)))).transpose(1, 2)


ALONG: dict[str, Callable[[random.Random], nn.Module]] = {
    "recurrent": Recurrent, "packed attention": Packed, "grouped attention": Grouped, "encoder": Encoder, "convolution along": Along,
    "cross attention": Crossed, "biased attention": Biased, "cell": Stepwise, "down and up along": Wider,
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


class Volume(nn.Module):
    """A convolution of three axes, channels in groups as the first of them."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.layer = nn.Conv3d(4, 4, (3, 3, 1), padding=(1, 1, 0), stride=1)
        self.back = nn.ConvTranspose3d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.back(F.relu(self.layer(x.unflatten(1, (4, 4))))).flatten(1, 2)


class Pyramid(nn.Module):
    """Two scales, one of which is made larger again."""

    def __init__(self, chance: random.Random):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2, groups=2)
        self.norm = nn.GroupNorm(4, WIDTH)

    def forward(self, x):
        small = self.coarse(F.avg_pool2d(x, 2))
        return self.norm(self.fine(x) + F.interpolate(small, size=x.shape[-2:]))


IMAGE: dict[str, Callable[[random.Random], nn.Module]] = {
    "split": Split,
    "depthwise": Depthwise,
    "down and up": DownUp,
    "volume": Volume,
    "pyramid": Pyramid,
}


# What goes in.


class Net(nn.Module):
    """Stem, parts and ending; ``padding`` says in one of several ways what is none of a row's tokens."""

    def __init__(self, stem: nn.Module | None, parts: list[nn.Module], end: nn.Module, masked: str = ""):
        super().__init__()
        self.stem, self.parts, self.end, self.masked = stem or nn.Identity(), nn.Sequential(*parts), end, masked

    def forward(self, x, padding=None):
        x = self.stem(x)
        padding = ~reality(padding, self.masked) if self.masked else None
        for part in self.parts:
            x = part(x, padding) if self.masked and isinstance(part, Packed | Grouped | Encoder) else part(x)
        return self.end(x)


def reality(mask: torch.Tensor, said: str) -> torch.Tensor:
    """Which tokens are real (rows, tokens), of a mask that says it in one of the ways."""
    if said == "lengths":
        return torch.arange(TIME) < mask[:, None]
    if said == "pairs":
        return mask.any(1)
    return {"padding": mask == 0, "real": mask != 0, "additive": mask == 0}[said]


def said_as(real: torch.Tensor, said: str) -> torch.Tensor:
    """A mask that says which tokens are real."""
    if said == "pairs":
        return real[:, :, None] & real[:, None] & torch.ones(TIME, TIME, dtype=torch.bool).tril()
    return {"padding": ~real, "real": real.long(), "additive": ~real * torch.finfo(torch.float32).min, "lengths": real.sum(1)}[said]


class Ending(nn.Module):
    """What comes out: a tensor, several, or scores under a name."""

    def __init__(self, kind: str, image: bool = False):
        super().__init__()
        layer = (lambda width: nn.Conv2d(WIDTH, width, 1)) if image else (lambda width: nn.Linear(WIDTH, width))
        self.kind, self.image = kind, image
        self.head = layer({"score": 1, "classes": 5}.get(kind, WIDTH))
        self.other = layer(4) if kind in ("pair", "named pair", "nested") else None

    def forward(self, x):
        if self.kind == "pooled":
            x = x.mean((2, 3), keepdim=True) if self.image else x.mean(1) if x.ndim > 2 else x
        first = self.head(x)
        if self.kind in ("classes", "score"):
            return SimpleOutput(logits=first)
        if self.other is not None:
            second = self.other(x)
            made = {"pair": (first, second), "nested": [first, {"boxes": [second], "count": 3, "places": torch.arange(3)}]}
            return made.get(self.kind, {"features": first, "boxes": second})
        return first


class SimpleOutput(SimpleNamespace):
    def values(self):
        return list(vars(self).values())


ENDINGS = ("plain", "plain", "pooled", "pair", "named pair", "nested", "score", "classes")
MASKS = ("padding", "real", "additive", "lengths", "pairs")


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
    masked = chance.choice(MASKS) if kind in ("tokens", "series") and chance.random() < 0.3 else ""
    dtype = chance.choice(_DTYPES)
    module = Net(stem, parts, Ending(ending, image=kind == "images"), masked).to(dtype).train(chance.random() < 0.3)
    words += [ending, str(dtype)[6:], *([f"masked by {masked}"] if masked else [])]
    form = chance.choice(["tensor", "tuple", "keywords"])
    return Sentence(module, [_batch(kind, masked, dtype, form) for _ in range(8)], (*words, form), masked)


def _batch(kind: str, masked: str, dtype: torch.dtype, form: str) -> Any:
    shape = {"features": (4, WIDTH), "series": (4, TIME, WIDTH), "images": (2, 3, SIDE, SIDE), "tokens": (4, TIME)}[kind]
    value = torch.randint(VOCABULARY, shape) if kind == "tokens" else torch.randn(shape).to(dtype)
    if masked:
        padding = said_as(torch.arange(TIME) < torch.randint(2, TIME + 1, (4, 1)), masked)
        return (value, padding) if form != "keywords" else {"x": value, "padding": padding}
    return {"tensor": value, "tuple": (value,), "keywords": {"x": value}}[form]
