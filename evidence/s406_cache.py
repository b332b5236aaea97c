"""S406, functional equivalence caching: a search that trains no function twice, against the same search with a memory of what it has drawn.

The paper hashes the outputs of candidates after a few steps of training, in searches for architectures (NAS-Bench-101) and algorithms. Here the
space is that of NAS-Bench-101 in small: a cell of seven vertices, at most nine edges, three operations; a vertex that lies on no path from the
cell's input to its output is silent, so that many encodings are one function. Cells predict the next character of a text from the eight
before. The search is regularised evolution; a candidate's outcome is its training loss, step by step from a fixed seed, and the probe its
first two steps. All searches draw the same candidates. The fairer baseline remembers encodings; one without any memory stands there too.
What a search for bits on the demo gave is said on the page: different bits are never the same function, so there is nothing to find.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from common import Claim, Setting, result, show
from kept import Kept
from modicum.allocate._cache import Cached
from modicum.core.plan import Picks
from modicum.data.text import shipped

# Vertices from the cell's input to its output; operations of those between; edges at most.
VERTICES, OPERATIONS, EDGES = 7, 3, 9
# Characters seen, and how many there are; width of a vertex.
CONTEXT, CHARACTERS, WIDTH = 8, 128, 32
# Training of one candidate; the last steps, whose mean loss is its score.
STEPS, BATCH, RATE, LAST = 24, 256, 1e-2, 6
# Regularised evolution: the living, those drawn to find a parent among, children.
ALIVE, DRAWN, CHILDREN = 16, 5, 64
PROBE = 2
CLAIM = Claim(
    id="S406",
    system="Functional equivalence caching (FEC)",
    claim="Hash each candidate by its outputs after a few steps on fixed probe data and seeds, cache evaluations; evolutionary architecture search "
    "reaches the same best score with fewer trainings and reports the hit rate.",
    metric="share of the training steps, probes included, that the cache saves in an evolutionary search for a cell, of the steps of the better "
    "baseline; the best score must be the same to the last bit",
    margin=2.0,
    setting=Setting(
        method="functional cache",
        baselines=("memory of encodings", "no memory"),
        seeds=(0, 1, 2, 3, 4),
        test_samples=0,
    ),
)


class Cell(nn.Module):
    """Vertices hand the sum of what comes in, changed by their operation, along the edges of a selection."""

    def __init__(self, picks: Picks, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.picks = picks
        self.embedding, self.stem = nn.Embedding(CHARACTERS, CONTEXT), nn.Linear(CONTEXT * CONTEXT, WIDTH)
        self.vertices = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(VERTICES - 2))
        self.head = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """Logits of the next character."""
        values: dict[int, torch.Tensor] = {0: self.stem(self.embedding(characters).flatten(1))}
        for vertex in range(1, VERTICES):
            coming = [value for other, value in values.items() if self.picks[f"{other}>{vertex}"]]
            if coming:
                values[vertex] = self.operation(vertex, sum(coming[1:], coming[0]))
        return self.head(values.get(VERTICES - 1, torch.zeros_like(values[0])))

    def operation(self, vertex: int, value: torch.Tensor) -> torch.Tensor:
        """Of a vertex between: a linear map, one with a kink, or the kink alone."""
        if vertex == VERTICES - 1:
            return value
        kind = self.picks[f"vertex {vertex}"]
        mapped = value if kind == 2 else self.vertices[vertex - 1](value)
        return mapped if kind == 0 else mapped.relu()


class Training:
    """A judge of cells: the losses of as many training steps as asked for, from one seed, on one order of the text."""

    samples = STEPS

    def __init__(self, seed: int):
        self.seed = seed
        text = torch.tensor(list(shipped("calibration")[seed % 8].encode("ascii", "replace")))
        starts = torch.randint(len(text) - CONTEXT, (STEPS, BATCH), generator=torch.Generator().manual_seed(seed))
        self.windows = text.unfold(0, CONTEXT + 1, 1)[starts]

    def __call__(self, picks: Picks, samples: int) -> np.ndarray:
        """Loss of each step before it is taken."""
        cell, losses = Cell(picks, self.seed), []
        optimizer = torch.optim.Adam(cell.parameters(), lr=RATE)
        for batch in self.windows[:samples]:
            loss = nn.functional.cross_entropy(cell(batch[:, :-1]), batch[:, -1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return np.array(losses)

    def many(self, candidates: Sequence[Picks], samples: int) -> list[np.ndarray]:
        """Train several."""
        return [self(picks, samples) for picks in candidates]


class Plain:
    """A judge that counts steps, and remembers encodings or nothing."""

    def __init__(self, judge: Training, remembers: bool):
        self.judge, self.samples, self.sequences, self.hits, self.misses = judge, judge.samples, 0, 0, 0
        self._known: dict[tuple[tuple[str, int], ...], np.ndarray] | None = {} if remembers else None

    @property
    def rate(self) -> float:
        """Share of candidates answered from memory."""
        return self.hits / max(self.hits + self.misses, 1)

    def __call__(self, picks: Picks, samples: int) -> np.ndarray:
        """Judge one."""
        key = tuple(sorted(picks.items()))
        if self._known is not None and key in self._known:
            self.hits += 1
            return self._known[key]
        self.misses, self.sequences = self.misses + 1, self.sequences + samples
        found = self.judge(picks, samples)
        if self._known is not None:
            self._known[key] = found
        return found


JUDGES: dict[str, Callable[[Training], Any]] = {
    "functional cache": functools.partial(Cached, probe=PROBE),
    "memory of encodings": functools.partial(Plain, remembers=True),
    "no memory": functools.partial(Plain, remembers=False),
}


def evolved(judge: Any, seed: int) -> float:
    """The best score that regularised evolution finds: the oldest dies, the fittest of a few has a child with one gene changed."""
    chance = np.random.default_rng(seed)
    score = lambda picks: float(judge(picks, judge.samples)[-LAST:].mean())
    alive: deque[tuple[float, Picks]] = deque(((score(picks), picks) for picks in (drawn(chance) for _ in range(ALIVE))), maxlen=ALIVE)
    best = min(score for score, _ in alive)
    for _ in range(CHILDREN):
        _, parent = min((alive[place] for place in chance.choice(ALIVE, DRAWN, replace=False)), key=lambda known: known[0])
        child = mutated(parent, chance)
        alive.append((score(child), child))
        best = min(best, alive[-1][0])
    return best


def drawn(chance: np.random.Generator) -> Picks:
    """A random cell."""
    edges = [f"{one}>{other}" for one in range(VERTICES) for other in range(one + 1, VERTICES)]
    taken = set(chance.choice(len(edges), EDGES, replace=False).tolist())
    operations = {f"vertex {vertex}": int(chance.integers(OPERATIONS)) for vertex in range(1, VERTICES - 1)}
    return {edge: int(place in taken) for place, edge in enumerate(edges)} | operations


def mutated(picks: Picks, chance: np.random.Generator) -> Picks:
    """Another cell by one gene: an edge more or less, or another operation; never more edges than allowed."""
    while True:
        gene = list(picks)[int(chance.integers(len(picks)))]
        kinds = OPERATIONS if gene.startswith("vertex") else 2
        child = picks | {gene: int(picks[gene] + chance.integers(1, kinds)) % kinds}
        if sum(value for gene, value in child.items() if ">" in gene) <= EDGES:
            return child


def seen(seed: int) -> dict[str, dict[str, float]]:
    """What each search reached by one seed, and what it spent."""
    found = {}
    for name, judged in JUDGES.items():
        judge = judged(Training(seed))
        best = evolved(judge, seed)
        found[name] = {"best loss": best, "training steps": judge.sequences, "trainings": judge.misses, "hit rate": judge.rate}
        found[name] |= {"equal functions": judge.equal} if isinstance(judge, Cached) else {}
    return found


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(seen, seed)) for seed in setting.seeds]
    rows = [{"option": name, **{key: [each[name][key] for each in found] for key in found[0][name]}} for name in JUDGES]
    method, *baselines = rows
    baselines.sort(key=lambda row: sum(row["training steps"]))
    gains = [1 - a / b for a, b in zip(method["training steps"], baselines[0]["training steps"])]
    hits = {"hits under another encoding": method.pop("equal functions"), "candidates of each search": ALIVE + CHILDREN}
    same = all(method["best loss"] == row["best loss"] for row in baselines)
    show(result(CLAIM, kept, [method, *baselines], gains, hits, {"the same best score": same}))


if __name__ == "__main__":
    main()
