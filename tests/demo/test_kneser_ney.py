import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "demo"))
import kneser_ney

sys.path.pop(0)


class Naive:
    """The textbook recursion over dictionaries of tuples."""

    def __init__(self, stream, order, vocabulary):
        self.vocabulary, self.counts = vocabulary, {}
        for length in range(1, order + 1):
            if length == order:
                self.counts[length] = Counter(tuple(stream[i : i + length]) for i in range(len(stream) - length + 1))
                continue
            before = defaultdict(set)
            for i in range(len(stream) - length):
                before[tuple(stream[i + 1 : i + 1 + length])].add(stream[i])
            self.counts[length] = Counter({gram: len(seen) for gram, seen in before.items()})

    def discount(self, length, count):
        n = Counter(self.counts[length].values())
        if all(n[k] for k in (1, 2, 3, 4)):
            share = n[1] / (n[1] + 2 * n[2])
            found = [k - (k + 1) * share * n[k + 1] / n[k] for k in (1, 2, 3)]
            if min(found) >= 0:
                return found[min(count, 3) - 1]
        return min(count, 3) / 2

    def probability(self, context, token):
        length = len(context) + 1
        lower = self.probability(context[1:], token) if context else 1 / self.vocabulary
        after = {gram: count for gram, count in self.counts[length].items() if gram[:-1] == context}
        if not after:
            return lower
        count, total = after.get((*context, token), 0), sum(after.values())
        kept = count - self.discount(length, count) if count else 0.0
        return kept / total + sum(self.discount(length, c) for c in after.values()) / total * lower


def made_stream(size, vocabulary, seed):
    """Tokens that repeat themselves, so that every order has n-grams of all low counts."""
    random = np.random.default_rng(seed)
    stream = random.zipf(1.3, size).clip(max=vocabulary) - 1
    for _ in range(size // 20):
        start, length, to = random.integers(0, size - 9), random.integers(2, 9), random.integers(0, size - 9)
        stream[to : to + length] = stream[start : start + length]
    return stream.astype(np.int64)


@pytest.mark.parametrize(("order", "size"), [(5, 1500), (3, 400), (1, 100)])
def test_probabilities_equal_those_of_a_naive_dictionary_model(order, size):
    stream = made_stream(size, 40, order)
    naive = Naive(stream.tolist(), order, kneser_ney.VOCABULARY)
    # Half of the windows are text that was counted, half of it is not, one token was never seen.
    windows = np.concatenate([stream[:64], made_stream(64, 40, 9)]).reshape(-1, 8)
    windows[-1, 3] = 1023

    found = kneser_ney.probabilities(kneser_ney.count(stream, order), windows)

    for row, window in enumerate(windows.tolist()):
        for place in range(1, 8):
            context = tuple(window[max(0, place - order + 1) : place])
            assert found[row, place - 1] == pytest.approx(naive.probability(context, window[place]), rel=1e-12)


def test_the_larger_stream_uses_estimated_discounts():
    levels = kneser_ney.count(made_stream(1500, 40, 5), 5)

    assert any(not np.array_equal(level.discounts, kneser_ney.FALLBACK) for level in levels)


@pytest.mark.parametrize("context", [[3, 1, 2, 0], [0, 0, 0, 0], [1023, 1023, 1023, 1023], [7]])
def test_probabilities_of_all_next_tokens_sum_to_one(context):
    levels = kneser_ney.count(made_stream(3000, 40, 0), 5)
    windows = np.array([[*context, token] for token in range(kneser_ney.VOCABULARY)])

    found = kneser_ney.probabilities(levels, windows)[:, -1]

    assert found.min() > 0
    assert found.sum() == pytest.approx(1.0, abs=1e-12)


def test_more_context_helps_on_text_with_structure():
    stream = np.tile(np.arange(50), 40)
    loss = [-np.log(kneser_ney.probabilities(kneser_ney.count(stream, order), stream.reshape(-1, 100))).mean() for order in (1, 2, 5)]

    assert loss[2] < loss[1] < loss[0] / 10
