"""UltraEdit at 1 to 20,000 edits: seconds and memory beside a floor by operations, its normal equations beside a naive twin.

python -m bench.edit
python -m bench.edit whole

Keys and wanted changes are random, as wide as a layer of the demo (768 columns, 256 rows) and of 20 tokens a fact. Ours adds them to sums and solves
once; the twin of the paper's equations keeps every key, builds its Gram matrix by one product and inverts it. The floor counts the multiply-adds of
the sums alone at the rate that a square product reaches here.

Whole edits are the demo's, one round of a hundred facts at a time, each batch on what the one before left.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch

from bench.common import show
from modicum.edit.normal_equations import NormalEquations

COUNTS, TOKENS, BATCH, ROWS, COLUMNS = (1, 10, 100, 1000, 10_000, 20_000), 20, 100, 256, 768


def batches(count: int):
    """Keys (tokens, columns) and values (tokens, rows), a batch of facts at a time."""
    chance = torch.Generator().manual_seed(0)
    for start in range(0, count, BATCH):
        tokens = TOKENS * min(BATCH, count - start)
        yield torch.randn(tokens, COLUMNS, generator=chance), torch.randn(tokens, ROWS, generator=chance)


def ours(count: int) -> torch.Tensor:
    """Sums, then one solve."""
    equations = NormalEquations(ROWS, COLUMNS)
    for keys, values in batches(count):
        equations.add(keys, values)
    return equations.solve(torch.eye(COLUMNS))


def naive(count: int) -> torch.Tensor:
    """All keys at once, and an inverse."""
    found = list(batches(count))
    keys, values = (torch.cat(part) for part in zip(*found))
    return (torch.linalg.inv(keys.T @ keys + torch.eye(COLUMNS)) @ (keys.T @ values)).T


def timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Seconds of a processor."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def drawn(count: int) -> torch.Tensor:
    """What it costs to make the keys and values."""
    total = torch.zeros(())
    for keys, _ in batches(count):
        total += keys[0, 0]
    return total


WHOLE, METHOD = (1, 10, 100, 1000, 20_000), "ultraedit rounds=1 contexts=0 guards=0"


def whole() -> None:
    """Edits of the demo from end to end, its covariances known."""
    from modicum.data.splits import from_text
    from modicum.edit.opening import taught as opened
    from modicum.edit.rows import encoded
    from modicum.edit.teaching import taught
    from modicum.fit.working import working
    from modicum.testing.facts import invented

    square = torch.randn(1024, 1024)
    rate = 4 * 2 * 1024**3 / timed(lambda: square @ square @ square @ square @ square)[0]
    rows = []
    with working("demo", 128) as (source, module):
        text = from_text(None, source.tokenizer, samples=16, tokens=128, seed=0, batch=8, test_samples=1).calibration
        pupil = opened(module, source.tokenizer, torch.cat([each["input_ids"] for each in text]))
        parameters = sum(each.numel() for each in module.parameters())
        taught(pupil, invented(100, 1), METHOD, batch=BATCH)
        for count in WHOLE:
            facts = invented(count)
            pupil.changes, before = {}, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            seconds = timed(lambda facts=facts: taught(pupil, facts, METHOD, batch=BATCH))[0]
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            tokens = int(encoded(pupil.tokenizer, facts, 32).attention_mask.sum())
            rows.append(
                [
                    f"{count:,}",
                    f"{seconds:.2f} s",
                    f"{6 * parameters * tokens / rate:.2f} s",
                    f"{1000 * seconds / count:.1f} ms",
                    f"{peak:.0f} MB",
                ]
            )
    show(
        "Whole edits: UltraEdit on the demo, a hundred facts at a time",
        ("edits", "ours, of one processor", "floor of the passes", "an edit", "memory more than at 100 edits, so far"),
        rows,
        f"The floor is 6 operations for each of {parameters / 1e6:.1f} million parameters and each token, at {rate / 1e9:.0f} GFLOP/s; a fact "
        f"here has {tokens / count:.1f} tokens. The aim is 20,000 within 300 s.",
    )


def main() -> None:
    """Print two tables and keep them."""
    whole()
    if "whole" in sys.argv[1:]:
        return
    square = torch.randn(1024, 1024)
    rate = 4 * 2 * 1024**3 / timed(lambda: square @ square @ square @ square @ square)[0]
    before, rows = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for count in COUNTS:
        seconds, found = timed(lambda count=count: ours(count))
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        drawing = timed(lambda count=count: drawn(count))[0]
        rows.append([count, found, seconds - drawing, drawing, 2 * count * TOKENS * COLUMNS * (COLUMNS / 2 + ROWS) / rate, peak])
    table = []
    for count, found, seconds, drawing, floor, peak in rows:
        twin, other = timed(lambda count=count: naive(count))
        apart, kept = float((found - other).norm() / other.norm()), 4 * count * TOKENS * (COLUMNS + ROWS) / 2**20
        table.append(
            [f"{count:,}", f"{seconds:.3f} s", f"{floor:.3f} s", f"{twin - drawing:.3f} s", f"{apart:.0e}", f"{peak:.0f} MB", f"{kept:.0f} MB"]
        )  # fmt: skip
    show(
        "Edits: normal equations of one layer, 768 columns and 256 rows, 20 tokens a fact",
        (
            "edits",
            "ours, of one processor",
            "floor of the sums",
            "naive twin",
            "difference",
            "memory more than before, so far",
            "the twin keeps",
        ),
        table,
        f"The floor is the sums' multiply-adds at {rate / 1e9:.0f} GFLOP/s, which a product of 1024 x 1024 reaches. A model's forward and backward "
        "passes are apart: 20,000 facts of 20 tokens cost 6 operations for each of its parameters and tokens, 1.8e13 on the demo. The paper: "
        "20,000 edits of a model of 7 billion within 5 minutes on one GPU of 24 GB.",
    )


if __name__ == "__main__":
    main()
