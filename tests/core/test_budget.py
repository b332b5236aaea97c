import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.core.budget import Budget, every, readable
from modicum.core.errors import BudgetError


@pytest.mark.parametrize(
    "text, budget",
    [
        ("4.5MB", Budget(size=4_500_000)),
        ("2GiB", Budget(size=2**31)),
        (" 3 kb ", Budget(size=3000)),
        (".5TB", Budget(size=500_000_000_000)),
        ("7B", Budget(size=7)),
        ("1.5kib", Budget(size=1536)),
        ("4.25bpw", Budget(bpw=4.25)),
        ("4 BPW", Budget(bpw=4.0)),
    ],
)
def test_text_becomes_a_budget(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "4", "MB", "-4MB", "4 apples", "four MB", "4e3MB", "4MB 5MB", "4,5MB", "nanbpw", "4bpw!"])
def test_text_that_is_no_budget_is_told(text):
    with pytest.raises(BudgetError) as error:
        Budget.parse(text)
    assert str(error.value) == f"budget: must be a size such as 4.5MB or 2GiB, or bits per weight such as 4bpw, got {text!r}."


def test_at_least_one_is_given():
    with pytest.raises(BudgetError, match="at least one must be given"):
        Budget()


def test_several_hold_together():
    assert Budget(size=400, bpw=4.0).bytes(1000) == 400 and Budget(size=600, bpw=4.0).bytes(1000) == 500
    both = Budget.of(size="1MB", params="60%", speed="1.5x", latency="20ms", loss="1%", memory="2GiB")
    assert both == Budget(size=10**6, params=0.6, speed=1.5, latency=0.02, loss=0.01, memory=2**31)
    assert both.bytes(10) == 10**6 and Budget(params=0.5).bytes(10) is None and Budget.of() is None
    assert str(Budget(params=0.6, loss=0.01)) == "60 % of parameters and loss 1 %"


def test_one_kind_is_given_once():
    assert every([None, Budget(size=1), Budget(bpw=2.0)]) == Budget(size=1, bpw=2.0)
    with pytest.raises(BudgetError, match="size: must be given once"):
        every([Budget(size=1), Budget(size=2)])


@pytest.mark.parametrize(
    "words, said",
    [
        ({"params": "60"}, r"a share above 1 needs a sign, got '60'\. Write 60%, or 6000% if that is meant\."),
        ({"loss": "5"}, r"Write 5%, or 500%"),
        ({"loss": "1"}, r"a loss of 1 needs a sign, got '1'\. Write 1%, or 100% if that is meant\."),
        ({"loss": 1.0}, r"Write 1%, or 100% if that is meant\."),
        ({"params": 60}, r"a share above 1 needs a sign, got '60'\. Write 60%, or 6000% if that is meant\."),
        ({"loss": 5.0}, r"Write 5%, or 500% if that is meant\."),
        ({"params": "150%"}, "must be a share of the original's values, at most 1, which is 100 %, got 1.5"),
        ({"speed": "0.5x"}, r"must be at least the original's, 1x, got 0\.5x\. Write 2x if that share of its time is meant\."),
        ({"params": "much"}, "a share such as 60%"),
        ({"loss": "-1%"}, "a share such as"),
        ({"speed": "fast"}, "a factor such as 1.5x"),
        ({"latency": "20"}, "a time such as 20ms"),
        ({"memory": "2"}, "must be a size such as"),
        ({"bpw": "four"}, "a number such as 4.5"),
        ({"params": 0.0}, "must be a positive number"),
        ({"loss": True}, "must be a positive number"),
    ],
)
def test_words_that_are_no_budget_are_told(words, said):
    with pytest.raises(BudgetError, match=said):
        Budget.of(**words)


@pytest.mark.parametrize("given_", [{"size": 0}, {"size": -1}, {"bpw": 0.0}, {"bpw": float("nan")}, {"bpw": float("inf")}])
def test_a_budget_is_positive(given_):
    with pytest.raises(BudgetError, match="must be a positive number"):
        Budget(**given_)


def test_a_share_that_can_be_read_in_two_ways_is_refused_however_it_is_given():
    with pytest.raises(BudgetError, match=r"got 60\. Write 60% if that is meant"):
        Budget(params=60)
    assert Budget.of(loss="150%") == Budget(loss=1.5) and Budget.of(params=1) == Budget(params=1)
    assert Budget.of(loss="100%") == Budget(loss=1.0)


@pytest.mark.parametrize("text", ["0MB", "0.4B", "0bpw"])
def test_nothing_is_no_budget(text):
    with pytest.raises(BudgetError):
        Budget.parse(text)


def test_bits_per_weight_never_round_up():
    assert Budget(bpw=4).bytes(1001) == 500
    assert Budget(bpw=4.5).bytes(16) == 9
    assert Budget(size=123).bytes(10**9) == 123


@given(st.integers(1, 10**12), st.floats(0.01, 64))
def test_bytes_allowed_hold_the_bits_asked_for(parameters, bpw):
    assert 8 * Budget(bpw=bpw).bytes(parameters) <= bpw * parameters * (1 + 1e-12)


@pytest.mark.parametrize("text, size", [("4.1MB", 4_100_000), ("1.001kB", 1001)])
def test_decimal_sizes_are_exact(text, size):
    assert Budget.parse(text).size == size


@pytest.mark.parametrize("size, text", [(999, "999 B"), (1000, "1.000 kB"), (4_500_000, "4.500 MB"), (7_250_000_000, "7.250 GB")])
def test_bytes_as_people_read_them(size, text):
    assert readable(size) == text == str(Budget(size=size))


def test_bits_per_weight_as_people_read_them():
    assert str(Budget(bpw=4.5)) == "4.5 bpw"
    assert Budget.parse(str(Budget(bpw=4.5))) == Budget(bpw=4.5)
