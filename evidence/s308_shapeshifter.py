"""S308, shapeshifter networks: one net at budgets below and above its own numbers, against nets of another width."""

from __future__ import annotations

from common import Claim, Setting, result, show
from small import DATA, less, many, shared

STEPS = 250

CLAIM = Claim(
    id="S308",
    system="Shapeshifter Networks (NPAS)",
    claim="Given any parameter budget, cluster layers into learned sharing groups and generate each layer's weights by templates from a shared bank; "
    "trains below and above native parameter count, unchanged architecture, and beats uniform width scaling.",
    metric="test loss of the dense net of fewer channels minus that of the full one made of a bank with no more numbers",
    margin=2.0,
    setting=Setting(
        method="shapeshifter keep=0.105", baselines=("dense, width 5",), beside=("shapeshifter keep=3", "dense"), test_samples=0
    ),
)


def main() -> None:
    kept, setting = shared(), CLAIM.setting
    mine, above, whole = (many(kept, method, steps=STEPS) for method in (setting.method, *setting.beside))
    narrow = many(kept, "dense", width=5, steps=STEPS)
    conditions = {
        "no more numbers": mine["values"][0] <= narrow["values"][0],
        "it trains above its own numbers": min(above["accuracy"]) > 0.9,
    }
    show(
        result(
            CLAIM,
            kept,
            [mine, narrow, above, whole],
            less(mine, narrow),
            {"above its own numbers, against dense": less(above, whole)},
            conditions,
            DATA,
        )
    )


if __name__ == "__main__":
    main()
