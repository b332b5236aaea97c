"""S006, gradual magnitude pruning: a large sparse net against a small dense one with as many weights that are not zero."""

from __future__ import annotations

from common import Claim, Setting, result, show
from small import DATA, less, many, shared

CLAIM = Claim(
    id="S006",
    system="Gradual magnitude pruning (cubic schedule)",
    claim="Train a small CNN/LSTM while sparsity follows s_f+(s_i-s_f)(1-t)^3; the large-sparse model must beat a small-dense model of equal "
    "nonzero-parameter count.",
    metric="test loss of the dense net of a third of the width minus that of the sparse net, which has no more weights",
    margin=2.0,
    setting=Setting(method="gradual keep=0.108 layers=erk", baselines=("dense, width 5",), beside=("dense",), test_samples=0),
)


def main() -> None:
    kept = shared()
    sparse, small, whole = many(kept, CLAIM.setting.method), many(kept, "dense", width=5), many(kept, "dense")
    conditions = {"no more weights": sparse["values"][0] <= small["values"][0]}
    show(result(CLAIM, kept, [sparse, small, whole], less(sparse, small), {}, conditions, DATA))


if __name__ == "__main__":
    main()
