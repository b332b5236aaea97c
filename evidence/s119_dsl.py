"""S119, dynamic sparse learning: a recommender whose embeddings share a fixed number of entries, against dense ones and a fixed mask."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

from classifying import learn
from common import Claim, Setting, result, show
from modicum.train.trained import Trained
from scenes.recommender import ITEMS, USERS, interactions
from small import less, row, shared

STEPS, WIDTH, KEEP, NEAR, TOP = 1000, 32, 0.3, 0.02, 20
DATA = (
    f"{USERS} users and {ITEMS} items with tastes of rank 8, popularity as one over the rank and chance; nine tenths of what each user took "
    "to learn, the rest to report"
)

CLAIM = Claim(
    id="S119",
    system="DSL (Dynamic Sparse Learning)",
    claim="Train a recommender (MF or LightGCN on MovieLens-100k) sparse from scratch, periodically pruning, regrowing and redistributing sparsity "
    "at constant budget; Recall@20 must stay near dense, with parameters never exceeding the budget.",
    metric="Recall@20 of the sparse recommender minus that of the dense one, plus 0.02",
    margin=2.0,
    setting=Setting(method="dsl keep=0.3 every=20", baselines=("dense",), beside=("random keep=0.3 layers=uniform",), test_samples=0),
)


class Factors(nn.Module):
    """Users and items as vectors, with a number for how popular an item is."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items, self.popular = nn.Embedding(USERS, WIDTH), nn.Embedding(ITEMS, WIDTH), nn.Parameter(torch.zeros(ITEMS))
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, users: torch.Tensor) -> torch.Tensor:
        """Scores (rows, items)."""
        return self.users(users) @ self.items.weight.T + self.popular


def pairs(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Items that were taken stand before ones that were not."""
    users, taken, others = batch
    scores = model(users)
    return -F.logsigmoid(scores.gather(1, taken[:, None]) - scores.gather(1, others[:, None])).mean()


def once(method: str, seed: int) -> dict[str, float]:
    """Recall of what was held out, and the most entries that there were at once."""
    torch.manual_seed(seed)
    model, (known, hidden), draw = Factors(), interactions(seed), torch.Generator().manual_seed(seed)
    taken, most = known.nonzero(), [0]

    def batches():
        while True:
            some = taken[torch.randint(len(taken), (512,), generator=draw)]
            yield some[:, 0], some[:, 1], torch.randint(ITEMS, (512,), generator=draw)

    with Trained(model, {"users.weight": method, "items.weight": method, "popular": "dense"}, seed=seed, total=STEPS) as t:

        def loss(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
            most[0] = max(most[0], t.count - ITEMS)
            return pairs(module, batch)

        curve = learn(t, batches(), loss, 2e-2, STEPS)
        with torch.no_grad():
            scores = model(torch.arange(USERS)).masked_fill(known, -torch.inf)
        found = hidden.gather(1, scores.topk(TOP).indices).sum(1) / hidden.sum(1).clamp(1, TOP)
        return {"curve": curve, "recall": float(found.mean()), "most entries at once": most[0]}


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    rows = [
        row(method, [kept(f"recommender {method}, seed {seed}", functools.partial(once, method, seed)) for seed in setting.seeds])
        for method in (setting.method, *setting.baselines, *setting.beside)
    ]
    gains = [NEAR - gain for gain in less(rows[0], rows[1], "recall")]
    conditions = {"never more than the budget": max(rows[0]["most entries at once"]) <= round(KEEP * WIDTH * (USERS + ITEMS))}
    figures = {"recall above that of a fixed random mask": less(rows[2], rows[0], "recall")}
    show(result(CLAIM, kept, rows, gains, figures, conditions, DATA))


if __name__ == "__main__":
    main()
