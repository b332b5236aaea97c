"""S140, Q-VLM: ranges of inputs in four bits searched jointly where layers depend on each other, told by entropy, against layer by layer.

Three ViTs trained on Scikit-learn's digits each get a projection and a decoder of two blocks that spells the digit under the picture; that is the
vision-language pair. Weights and inputs of all linear layers are rounded to four bits, inputs under one range each, a share of what calibration met.
Layer by layer each share is the one of least error of the layer's own output, on what the rounded layers before it give. Q-VLM's blocks join
neighbours of a module whose inputs have entropy above the median; a block's shares are searched together for the least error of its last
output, by fewer shares for each so that both searches try as many in all. Beside them stand the ranges as met, and blocks of neighbours by chance.
"""

from __future__ import annotations

import copy
import functools
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from common import Claim, Setting, result, show
from kept import Kept
from scenes.digits import classifier, opened, pictures
from scenes.training import drawn, fitted

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LENGTH, WIDTH, BLOCKS, UPDATES, SEEN = 6, 48, 2, 250, 64
SHARES = (0.4, 0.55, 0.7, 0.85, 1.0)
FEWER = (0.5, 0.75, 1.0)  # of two layers together: nine pairs for two, where one by one takes ten
CLAIM = Claim(
    id="S140",
    system="Q-VLM",
    claim="Use activation entropy as dependency proxy to partition layers into blocks and search quantization ranges jointly inside each; output "
    "error of a tiny vision-language model must beat layer-wise search at similar search cost.",
    metric="logarithm of the KL of what is spelled under test pictures after layer-wise search over that after a search in blocks by entropy",
    margin=2.0,
    setting=Setting(
        method="blocks by entropy",
        baselines=("layer by layer",),
        beside=("ranges as met", "blocks by chance"),
        tokens=6,
        test_samples=497,
    ),
)


class Pair(nn.Module):
    """A picture's patches before the letters of a word, in a causal decoder."""

    def __init__(self, seed: int):
        super().__init__()
        self.vision = opened(classifier(net="vit", seed=seed), "vit").vit
        self.project, self.letters = nn.Linear(64, WIDTH), nn.Embedding(28, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = lambda: nn.ModuleDict(
            {"norm": nn.LayerNorm(WIDTH), "qkv": nn.Linear(WIDTH, 3 * WIDTH), "out": nn.Linear(WIDTH, WIDTH), "middle": nn.LayerNorm(WIDTH),
             "up": nn.Linear(WIDTH, 3 * WIDTH), "down": nn.Linear(3 * WIDTH, WIDTH)}
        )  # fmt: skip
        self.blocks, self.head = nn.ModuleList(layer() for _ in range(BLOCKS)), nn.Linear(WIDTH, 28)

    def forward(self, x: torch.Tensor, letters: torch.Tensor) -> torch.Tensor:
        """Logits (pictures, letters, 28) of each next letter."""
        seen = self.project(self.vision(x).last_hidden_state)
        value = torch.cat([seen, self.letters(letters) + self.places[: letters.shape[1]]], 1)
        causal = torch.ones(value.shape[1], value.shape[1], dtype=torch.bool).tril()
        causal[:, : seen.shape[1]] = True
        for block in self.blocks:
            q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in block["qkv"](block["norm"](value)).chunk(3, -1))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=causal)
            value = value + block["out"](mixed.transpose(1, 2).flatten(2))
            value = value + block["down"](block["up"](block["middle"](value)).relu())
        return self.head(value[:, seen.shape[1] :])


def spelled(labels: torch.Tensor) -> torch.Tensor:
    """Letters (pictures, 7) of words: 26 begins, 27 ends."""
    rows = [[26, *(ord(letter) - 97 for letter in WORDS[label]), *[27] * 6][: LENGTH + 1] for label in labels.tolist()]
    return torch.tensor(rows)


def trained(seed: int) -> Pair:
    """A pair whose decoder has learnt to spell; its eyes are those of the scene."""
    torch.manual_seed(seed)
    pair, (x, y) = Pair(seed), pictures("train")
    pair.vision.requires_grad_(False)
    letters = spelled(y)
    loss = lambda net, at: nn.functional.cross_entropy(net(x[at], letters[at, :-1]).flatten(0, 1), letters[at, 1:].flatten())
    fitted(pair, drawn(len(x), 64, seed), loss, 3e-3, UPDATES)
    return pair.eval()


def coded(value: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Sixteen levels between two ends."""
    step = ((high - low) / 15).clamp_min(1e-8)
    return ((value - low) / step).round().clamp(0, 15) * step + low


class Rounded:
    """A pair in four bits, whose layers' inputs are rounded within a share of what calibration met."""

    def __init__(self, pair: Pair, x: torch.Tensor, letters: torch.Tensor):
        self.pair, self.given, self.tried = pair, (x, letters), 0
        self.layers = {name: layer for name, layer in pair.named_modules() if isinstance(layer, nn.Linear)}
        self.met: dict[str, torch.Tensor] = {}
        self.whole = self.outputs(lambda name, value: self.met.setdefault(name, value))
        self.weights = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.ends = {name: (value.min(), value.max()) for name, value in self.met.items()}
        self.shares: dict[str, float] = {}
        self.order = list(self.met)

    @torch.no_grad()
    def outputs(self, see: Callable[[str, torch.Tensor], Any]) -> dict[str, torch.Tensor]:
        """Each layer's output on the calibration pictures; ``see`` is shown inputs, and gives others where it gives tensors."""
        found: dict[str, torch.Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: _put(see(name, args[0]))) for name, layer in self.layers.items()
        ]
        hooks += [
            layer.register_forward_hook(lambda _, __, out, name=name: found.update({name: out})) for name, layer in self.layers.items()
        ]
        self.pair(*self.given)
        for hook in hooks:
            hook.remove()
        return found

    @torch.no_grad()
    def answer(self, x: torch.Tensor, letters: torch.Tensor) -> torch.Tensor:
        """Logarithms of chances of other pictures' letters, with inputs within their shares."""
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: (self.rounded(name, args[0]),))
            for name, layer in self.layers.items()
        ]
        found = self.pair(x, letters).log_softmax(-1)
        for hook in hooks:
            hook.remove()
        return found

    def rounded(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """An input within its share, where it has one."""
        share = self.shares.get(name)
        return value if share is None else coded(value, self.ends[name][0] * share, self.ends[name][1] * share)

    def search(self, block: Sequence[str], shares: Sequence[float]) -> None:
        """Shares of a block's layers for the least error of its last output."""
        errors = {}
        for pick in itertools.product(shares, repeat=len(block)):
            self.shares |= dict(zip(block, pick))
            errors[pick] = float((self.outputs(self.rounded)[block[-1]] - self.whole[block[-1]]).square().sum())
            self.tried += 1
        self.shares |= dict(zip(block, min(errors, key=lambda pick: errors[pick])))

    def round_weights(self) -> None:
        """Weights of four bits, symmetric by row."""
        for layer in self.layers.values():
            top = layer.weight.detach().abs().amax(1, keepdim=True)
            layer.weight.data = coded(layer.weight.data, -top, top)

    def entropy(self, name: str) -> float:
        """Of what a layer is given, in 64 bins over its range."""
        share = torch.histc(self.met[name].float(), 64) / self.met[name].numel()
        return -float((share * share.clamp_min(1e-12).log()).sum())


def _put(value: Any) -> Any:
    return (value,) if isinstance(value, torch.Tensor) else None


def blocks(rounded: Rounded, joined: Sequence[str]) -> list[list[str]]:
    """Layers in order, those that are ``joined`` with the next of their own module in one block of at most two."""
    found: list[list[str]] = []
    for name in rounded.order:
        last = found[-1] if found else []
        near = len(last) == 1 and last[0] in joined and last[0].rpartition(".")[0].split(".")[:3] == name.rpartition(".")[0].split(".")[:3]
        found = [*found[:-1], [*last, name]] if near else [*found, [name]]
    return found


def seen(seed: int) -> dict[str, dict[str, float]]:
    """KL, search cost and share spelled right of each way, on one pair."""
    found, pair = {}, trained(seed)
    (x, y), (test, labels) = pictures("train"), pictures("test")
    letters, wanted = spelled(y)[:SEEN, :-1], spelled(labels)
    with torch.no_grad():
        whole = pair(test, wanted[:, :-1]).log_softmax(-1)
    for way in (CLAIM.setting.method, *CLAIM.setting.baselines, *CLAIM.setting.beside):
        rounded = Rounded(copy.deepcopy(pair), x[:SEEN], letters)
        entropies = {name: rounded.entropy(name) for name in rounded.order}
        high = [name for name in rounded.order if entropies[name] > statistics.median(entropies.values())]
        chance = torch.randperm(len(rounded.order), generator=torch.Generator().manual_seed(seed))[: len(high)].tolist()
        joined = {"blocks by entropy": high, "blocks by chance": [rounded.order[at] for at in chance]}.get(way, [])
        rounded.round_weights()
        for block in blocks(rounded, joined):
            if way == "ranges as met":
                rounded.shares |= dict.fromkeys(block, 1.0)
            else:
                rounded.search(block, SHARES if len(block) == 1 else FEWER)
        answer = rounded.answer(test, wanted[:, :-1])
        right = (answer.argmax(-1) == wanted[:, 1:]).all(1).float().mean()
        found[way] = {
            "divergence": float((whole.exp() * (whole - answer)).sum(-1).mean()), "spelled right": float(right), "ranges tried": rounded.tried
        }  # fmt: skip
    return found


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(seen, seed)) for seed in setting.seeds]
    names = (setting.method, *setting.baselines, *setting.beside)
    rows = [{"option": name, **{key: [each[name][key] for each in found] for key in found[0][name]}} for name in names]
    log = lambda each, name: float(torch.tensor(each[name]["divergence"]).log())
    gains = [log(each, "layer by layer") - log(each, "blocks by entropy") for each in found]
    cost = all(each["blocks by entropy"]["ranges tried"] <= 1.1 * each["layer by layer"]["ranges tried"] for each in found)
    data = "pairs of a ViT and a decoder that spell Scikit-learn's digits"
    show(result(CLAIM, kept, rows, gains, {}, {"at most a tenth more ranges tried": cost}, data))


if __name__ == "__main__":
    main()
