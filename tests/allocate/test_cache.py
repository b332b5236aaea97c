import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate._cache import Cached, cached
from modicum.allocate.evopress import evopress
from modicum.core.errors import SettingError
from modicum.core.plan import Choice, Table

_spec = importlib.util.spec_from_file_location("synthetic_judge", Path(__file__).with_name("synthetic_judge.py"))
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)


class Parity:
    """A judge for which only whether the sum of a selection is odd matters; remembers what it was asked."""

    def __init__(self, samples=8):
        self.samples, self.asked = samples, []

    def __call__(self, picks, samples):
        self.asked.append((tuple(picks.values()), samples))
        return np.random.default_rng(sum(picks.values()) % 2).random(self.samples)[:samples]

    def many(self, candidates, samples):
        return [self(picks, samples) for picks in candidates]


def test_what_was_judged_is_not_judged_again():
    judge = Parity()
    known = Cached(judge)
    first = known({"a": 1, "b": 0}, 6)
    judged = list(judge.asked)
    assert np.array_equal(known({"b": 0, "a": 1}, 6), first) and np.array_equal(known({"a": 1, "b": 0}, 3), first[:3])
    assert judge.asked == judged == [((1, 0), 2), ((1, 0), 6)]
    assert (known.hits, known.equal, known.misses, known.sequences, known.rate) == (2, 0, 1, 8, 2 / 3)


def test_one_function_under_two_names_is_judged_on_the_probe_alone():
    judge = Parity()
    known = Cached(judge)
    one, other = known({"a": 1}, 8), known({"a": 3}, 8)
    assert np.array_equal(one, other) and np.array_equal(other, Parity()({"a": 3}, 8))
    assert judge.asked == [((1,), 2), ((1,), 8), ((3,), 2)]
    assert (known.hits, known.equal, known.misses) == (1, 1, 1)
    known({"a": 2}, 8)
    assert known.misses == 2


def test_an_earlier_judgement_is_extended_and_shared():
    judge = Parity()
    known = Cached(judge)
    known({"a": 1}, 4)
    known({"a": 3}, 8)
    assert judge.asked[-1] == ((3,), 8)
    asked = len(judge.asked)
    assert len(known({"a": 1}, 8)) == 8 and len(judge.asked) == asked


def test_several_at_once_come_back_in_order_and_each_function_is_judged_once():
    judge = Parity()
    known = Cached(judge)
    candidates = [{"a": index} for index in (0, 1, 2, 3, 0)]
    found = known.many(candidates, 5)
    assert all(np.array_equal(outcome, Parity()(picks, 5)) for picks, outcome in zip(candidates, found))
    assert [samples for _, samples in judge.asked] == [2, 2, 2, 2, 5, 5]
    assert (known.hits, known.equal, known.misses) == (3, 2, 2)


def test_what_is_handed_out_may_be_changed():
    known = Cached(Parity())
    known({"a": 0}, 4)[:] = -1
    assert (known({"a": 0}, 4) >= 0).all()


@given(st.lists(st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(1, 5)), max_size=12), st.integers(1, 9))
def test_answers_are_the_judges_own(requests, probe):
    judge, asked = Parity(samples=5), 0
    known = Cached(judge, probe=probe)
    for indices, samples in requests:
        candidates = [{"a": index} for index in indices]
        for picks, outcome in zip(candidates, known.many(candidates, samples)):
            assert np.array_equal(outcome, Parity(samples=5)(picks, samples))
        asked += len(candidates)
    assert known.hits + known.misses == asked
    assert known.sequences == sum(samples for _, samples in judge.asked)
    for index in range(5):  # a selection is probed once, and never asked for fewer sequences than are known
        sizes = [samples for picks, samples in judge.asked if picks == (index,)]
        assert sizes == sorted(set(sizes))


class Unremembered(Cached):
    """Judges whatever it is asked."""

    def many(self, candidates, samples):
        return self._judged(list(candidates), samples)


def test_a_search_reaches_the_same_score_with_fewer_judgements():
    # Every option stands twice on the menu, under two names.
    table, limits = synthetic.drawn(1, sites=6, options=3)
    twice = {
        site: [Choice(f"{c.option}{name}", c.bytes, c.values, c.harm) for c in found for name in "ab"]
        for site, found in table.choices.items()
    }
    table = Table(twice, table.fixed)
    judge = synthetic.SyntheticJudge(table, seed=1, by_site=0.5, pairs=0.5)
    known, plain = Cached(judge), Unremembered(judge)
    settings = {"generations": 12, "offspring": 12, "seed": 3}
    remembering, forgetting = evopress(table, limits, known, **settings), evopress(table, limits, plain, **settings)
    assert judge.truth(remembering) == judge.truth(forgetting)
    assert known.sequences < 0.75 * plain.sequences
    assert known.rate > 0.25 and known.equal > 0


def test_a_search_without_a_judge_says_what_to_do():
    with pytest.raises(SettingError, match=r"^evopress: must judge selections .* no judge was given\. Choose integer_program"):
        cached(None, "evopress")
    known = Cached(Parity())
    assert cached(known, "evopress") is known
