"""S095, weight matching analysed: barriers, distances and singular vectors of perceptrons trained apart, and three of them merged."""

from __future__ import annotations

import functools
import itertools
import statistics
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from common import Claim, Setting, result, show
from kept import Kept
from modicum.merging.matching import matched
from modicum.models.permutable import Numbering, by_tensor, numberings, permuted
from scenes.digits import pictures
from scenes.training import drawn, fitted
from tasks import Tensors, merged

CLAIM = Claim(
    id="S095",
    system="LMC via weight matching, analysis",
    claim="Weight-match two small MLPs; report barrier, L2 reduction and singular-vector alignment; singular values must be unchanged, alignment "
    "concentrate on large ones and predict the barrier; compare with STE on three-model merging.",
    metric="test accuracy of the mean of three perceptrons matched by weights minus that of the mean of three matched by a straight-through "
    "estimator",
    margin=2.0,
    setting=Setting(
        method="average, matched by weights", baselines=("average, matched by a straight-through estimator",), seeds=(0, 1, 2), test_samples=0,
        beside=("average, not matched",),
    ),
)  # fmt: skip
WIDTH, STEPS, RATE, ESTIMATES, TOP = 256, 300, 3e-3, 60, 16
DATA = f"Perceptrons of two hidden layers of {WIDTH} trained apart on digits, three by each seed"


def perceptron() -> nn.Module:
    """Of grey digits."""
    return nn.Sequential(nn.Linear(256, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


def flat(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits (pictures, 256)."""
    x, y = pictures(part)
    return x[:, 0].reshape(len(x), -1), y


def trained(seed: int) -> Tensors:
    """One net."""
    torch.manual_seed(seed)
    model, (x, y) = perceptron(), flat("train")
    loss = lambda module, batch: F.cross_entropy(module(batch[0]), batch[1])
    fitted(model, ((x[places], y[places]) for places in drawn(len(x), 64, seed)), loss, RATE, STEPS)
    return {name: value.detach() for name, value in model.state_dict().items()}


@torch.no_grad()
def judged(tensors: Tensors) -> tuple[float, float]:
    """Loss and accuracy on test pictures."""
    x, y = flat("test")
    found = functional_call(perceptron(), dict(tensors), (x,))
    return float(F.cross_entropy(found, y)), float((found.argmax(1) == y).float().mean())


def turned(tensors: Tensors, sets: list[Numbering], orders: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A net with its units in other orders."""
    return {**tensors, **{name: permuted(tensors[name], mine) for name, mine in by_tensor(list(zip(sets, orders))).items()}}


def estimated(one: Tensors, other: Tensors, sets: list[Numbering], seed: int) -> dict[str, torch.Tensor]:
    """The other net by a straight-through estimator: free weights whose best orders are taken, moved by the gradient of the loss half way."""
    x, y = flat("train")
    free = {name: value.clone().requires_grad_() for name, value in one.items()}
    optimizer, best, lowest = torch.optim.Adam(free.values(), lr=RATE), dict(other), float("inf")
    for _, places in zip(range(ESTIMATES), drawn(len(x), 256, seed)):
        now = turned(other, sets, matched(lambda name: free[name].detach(), other.__getitem__, sets, seed))
        half = {name: (one[name] + now[name] + free[name] - free[name].detach()) / 2 for name in one}
        loss = F.cross_entropy(functional_call(perceptron(), half, (x[places],)), y[places])
        if float(loss) < lowest:
            best, lowest = now, float(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


def alignment(one: Tensors, other: Tensors, name: str, top: bool) -> float:
    """How far the leading, or the other, singular vectors of two weights point the same way: mean of ``|u·p| |v·q|`` at best partners."""
    (u, _, v), (p, _, q) = (torch.linalg.svd(each[name], full_matrices=False) for each in (one, other))
    part = slice(0, TOP) if top else slice(TOP, None)
    return float(((u[:, part].T @ p[:, part]).abs() * (v[part] @ q[part].T).abs()).amax(1).mean())


def once(seed: int) -> dict[str, Any]:
    """All figures by one seed."""
    nets = [trained(10 * seed + place) for place in range(3)]
    sets = numberings(perceptron(), torch.rand(2, 256))
    weight = [nets[0], *(turned(each, sets, matched(nets[0].__getitem__, each.__getitem__, sets, seed)) for each in nets[1:])]
    estimate = [nets[0], *(estimated(nets[0], each, sets, seed) for each in nets[1:])]
    mean = lambda models: merged("average", models[0], models)
    barrier = lambda a, b: judged(mean([a, b]))[0] - (judged(a)[0] + judged(b)[0]) / 2
    apart = lambda a, b: float(sum((a[name] - b[name]).square().sum() for name in a)) ** 0.5
    sizes = lambda tensors: torch.cat([torch.linalg.svdvals(value.double()) for value in tensors.values() if value.ndim == 2])
    ways = {"not matched": nets, "matched by weights": weight, "matched by a straight-through estimator": estimate}
    return {
        "accuracy": {f"average, {way}": judged(mean(models))[1] for way, models in ways.items()},
        "alone": statistics.mean(judged(each)[1] for each in nets),
        "barrier": {way: barrier(models[0], models[1]) for way, models in ways.items()},
        "distance": {way: apart(models[0], models[1]) for way, models in ways.items()},
        "aligned": {f"{way}, {'leading' if top else 'other'}": alignment(models[0], models[1], "2.weight", top)
                    for (way, models), top in itertools.product(ways.items(), (True, False))},
        "values": float((sizes(weight[1]) / sizes(nets[1]) - 1).abs().max()),
    }  # fmt: skip


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    rows = [
        {"option": text, "accuracy of the mean of three": [each["accuracy"][text] for each in found],
         "barrier between two": [each["barrier"][text.removeprefix("average, ")] for each in found],
         "distance between two": [each["distance"][text.removeprefix("average, ")] for each in found]}
        for text in (setting.method, *setting.baselines, *setting.beside)
    ]  # fmt: skip
    gains = [each["accuracy"][setting.method] - each["accuracy"][setting.baselines[0]] for each in found]
    rise = lambda part: [each["aligned"][f"matched by weights, {part}"] - each["aligned"][f"not matched, {part}"] for each in found]
    figures = {"accuracy of one": [each["alone"] for each in found], "rise of alignment, leading vectors": rise("leading"),
               "rise of alignment, other vectors": rise("other")}  # fmt: skip
    conditions = {
        "singular values are unchanged to one in 10,000": max(each["values"] for each in found) < 1e-4,
        "the leading singular vectors are aligned more than the others, in every seed": all(
            a > b for a, b in zip(rise("leading"), rise("other"))
        ),
        "matching lowers the barrier in every seed": all(
            each["barrier"]["matched by weights"] < each["barrier"]["not matched"] for each in found
        ),
    }
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
