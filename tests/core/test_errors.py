"""Names that are offered, and messages that are quoted."""

from hypothesis import given
from hypothesis import strategies as st

from modicum.core.errors import near, quoted


def test_a_near_name_is_offered_and_few_are_listed():
    assert near("grop", ["group", "bits"]) == "Did you mean group?"
    assert near("zzz", ["group", "bits"]) == "Known: bits, group."


def test_of_many_names_the_nearest_ten_and_the_count():
    said = near("zq", [f"layers.{i}.q_proj" for i in range(3000)])
    assert said.startswith("The nearest of 3000: ") and said.count(",") == 9


def test_a_long_message_ends_between_two_words():
    assert quoted("one two three four", 12) == "one two …"
    assert quoted(KeyError()) == "KeyError"
    assert quoted("\n  first.\nsecond") == "first"
    assert quoted("Validation error:\n    hidden_size must be a number.") == "hidden_size must be a number"


@given(st.text(), st.integers(10, 80))
def test_a_quoted_message_is_one_short_line_of_whole_words(text, most):
    said = quoted(text, most)
    assert len(said) <= most or not text.strip()
    assert "\n" not in said
    cut = said.removesuffix(" …")
    if cut != said and " " in cut:
        assert cut in text
