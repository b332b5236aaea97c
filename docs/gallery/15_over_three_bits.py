"""Train an adapter over a model of three bits, which stays as it is: its codes are frozen, and a product beside them learns to make up for them.

A trained step stands last in an option of `fit`. Its bytes count from the start, `--heal` says in how many updates it is trained, and what is
written is one file that holds codes and product.

python docs/gallery/15_over_three_bits.py
"""

from __future__ import annotations

import modicum

# Few sequences and updates, so that the script takes half a minute; leave these out for a real model.
FEW = {"samples": 16, "test_samples": 8, "tokens": 64, "target": "modicum", "allow_broken": True}
WAYS = {
    "three bits": {"method": "nearest bits=3 group=32"},
    "beside a product": {"method": "nearest bits=3 group=32 | lora rank=4", "heal": 24, "heal_with": "norms"},
}


def main() -> None:
    """What each is worth on texts that neither saw."""
    for name, settings in WAYS.items():
        told = modicum.fit("demo", **FEW, **settings).receipt
        trained = told.get("healing", {}).get("methods", {}).get("lora rank=4", 0)
        print(
            f"{name:18}{told['bytes']['actual']:>10,} bytes {trained:>9,} trained  divergence from the original {told['quality']['mean']:.4f}"
        )


if __name__ == "__main__":
    main()
