"""Judge the demo's texts by an interpolated modified Kneser–Ney 5-gram, the yardstick on the demo model's card.

It counts the very stream of tokens that the model is trained on, and predicts the very tokens that the model is judged on: windows of
512 tokens that do not overlap, each token but a window's first predicted from what stands before it in the window. Tokens fit in ten
bits, so that an n-gram is one integer and counting is sorting.

    python scripts/demo/kneser_ney.py       # half a minute on one core
"""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from build_text import BUILD, PACKAGE, SEPARATOR

BITS, ORDER = 10, 5
VOCABULARY = 1 << BITS
# Discounts of counts 0, 1, 2, and 3 or more where too few n-grams of a low count exist to estimate them.
FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])
# Documents tokenized at a time: a tokenizer's own record of a text is a hundred times its size.
PIECE = 100


@dataclass(frozen=True)
class Level:
    """One order: sorted n-grams with the share each keeps of its context's count, and sorted contexts with the share each passes down."""

    grams: np.ndarray
    kept: np.ndarray
    contexts: np.ndarray
    passed: np.ndarray
    discounts: np.ndarray


def keys(tokens: np.ndarray, order: int) -> np.ndarray:
    """Keys (..., length - order + 1) of the n-grams in ``tokens`` (..., length): ten bits a token, the last token lowest."""
    count = tokens.shape[-1] - order + 1
    found = np.zeros((*tokens.shape[:-1], count), np.int64)
    for place in range(order):
        found = found << BITS | tokens[..., place : place + count]
    return found


def discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts (4,) of counts 0, 1, 2, and 3 or more, from how many n-grams have each of the counts 1 to 4."""
    n = np.bincount(counts[counts <= 4], minlength=5)
    if not n[1:].all():
        return FALLBACK
    share = n[1] / (n[1] + 2 * n[2])
    found = np.array([0.0, *(k - (k + 1) * share * n[k + 1] / n[k] for k in (1, 2, 3))])
    return found if (found >= 0).all() else FALLBACK


def level(grams: np.ndarray, counts: np.ndarray) -> Level:
    """The level of sorted ``grams`` and their counts."""
    found = discounts(counts)
    taken = found[np.minimum(counts, 3)]
    contexts = grams >> BITS
    starts = np.flatnonzero(np.diff(contexts, prepend=-1))
    totals = np.add.reduceat(counts, starts)
    kept = (counts - taken) / np.repeat(totals, np.diff(starts, append=len(grams)))
    return Level(grams, kept, contexts[starts], np.add.reduceat(taken, starts) / totals, found)


def count(stream: np.ndarray, order: int = ORDER) -> list[Level]:
    """Levels of orders 1 to ``order`` of a stream (tokens,)."""
    levels = []
    for length in range(1, order):
        # Below the highest order an n-gram counts once for every distinct token seen before it.
        longer = np.unique(keys(stream, length + 1))
        levels.append(level(*np.unique(longer & ((1 << BITS * length) - 1), return_counts=True)))
    return [*levels, level(*np.unique(keys(stream, order), return_counts=True))]


def probabilities(levels: list[Level], windows: np.ndarray) -> np.ndarray:
    """Probability (windows, length - 1) of every token but the first of ``windows`` (windows, length), given those before it.

    Where fewer tokens stand before one than the highest order asks for, the levels that need more are left out.
    """
    found = np.full(windows.shape, 1 / VOCABULARY)
    for order, known in enumerate(levels[: windows.shape[1]], 1):
        ends = keys(windows, order)
        kept, passed = _look_up(known.grams, known.kept, ends, 0.0), _look_up(known.contexts, known.passed, ends >> BITS, 1.0)
        found[:, order - 1 :] = kept + passed * found[:, order - 1 :]
    return found[:, 1:]


def _look_up(known: np.ndarray, values: np.ndarray, wanted: np.ndarray, otherwise: float) -> np.ndarray:
    places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[places] == wanted, values[places], otherwise)


def _pieces(text: str) -> Iterator[str]:
    documents = [document for document in text.split(SEPARATOR) if document]
    for start in range(0, len(documents), PIECE):
        yield SEPARATOR.join(documents[start : start + PIECE])


def main() -> None:
    """Count the training text, judge validation and test, and write ``build/demo/kneser_ney.json``."""
    # Only here: counting needs numpy alone, and torch and Transformers take seconds to import.
    from transformers import AutoTokenizer

    from train import LENGTH, encode

    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "model")

    def stream(text: str) -> np.ndarray:
        return np.concatenate([encode(tokenizer, piece).numpy() for piece in _pieces(text)])

    train = stream((BUILD / "train.txt").read_text())
    levels = count(train)
    record = {
        "order": ORDER, "train_tokens": len(train), "grams": [len(known.grams) for known in levels],
        "discounts": [known.discounts[1:].round(4).tolist() for known in levels],
    }  # fmt: skip
    for part in ("validation", "test"):
        tokens = stream(lzma.decompress((PACKAGE / f"{part}.txt.xz").read_bytes()).decode())
        found = probabilities(levels, tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH))
        record[part] = {"tokens": found.size, "perplexity": round(math.exp(-np.log(found).mean()), 4)}
    (BUILD / "kneser_ney.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
