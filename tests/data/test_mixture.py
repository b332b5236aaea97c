import pytest
import torch

from modicum.core.errors import DataError
from modicum.data.extent import extent
from modicum.data.mixture import apportioned, mixed
from modicum.data.splits import from_text
from modicum.models.open import open_model


@pytest.fixture
def letters(tmp_path):
    """Two files that share no word."""
    for name, word in (("code.txt", "def"), ("prose.txt", "the")):
        (tmp_path / name).write_text("<|endoftext|>".join(f"{word} {number} " * 40 for number in range(60)))
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer():
    return open_model("demo").tokenizer


def shares(batches, tokenizer):
    """How many windows are of each of the two files."""
    rows = [tokenizer.decode(row) for batch in batches for row in batch["input_ids"]]
    return sum("def" in row for row in rows), sum("the" in row for row in rows)


def test_each_part_has_windows_of_all_sources_by_their_weights(letters, tokenizer):
    path = f"{letters}/code.txt=3,{letters}/prose.txt"
    found = from_text(path, tokenizer, samples=16, tokens=32, test_samples=8)
    assert shares(found.calibration, tokenizer) == (12, 4)
    assert shares(found.validation, tokenizer) == (3, 1) and shares(found.test, tokenizer) == (6, 2)
    told = found.taken["sources"]
    assert [(each["weight"], each["calibration"], each["test"]) for each in told] == [(3.0, 12, 6), (1.0, 4, 2)]
    assert found.taken["documents"] == 120 and found.source == path


def test_one_source_is_drawn_as_it_was(letters, tokenizer):
    alone = from_text(letters / "code.txt", tokenizer, samples=8, tokens=32, test_samples=8)
    weighed = from_text(f"{letters}/code.txt=2", tokenizer, samples=8, tokens=32, test_samples=8)
    assert alone.hashes == weighed.hashes and "sources" not in weighed.taken


def test_a_source_that_has_fewer_windows_is_told(letters, tokenizer):
    (letters / "few.txt").write_text("and " * 200)
    found = from_text(f"{letters}/code.txt,{letters}/few.txt", tokenizer, samples=16, tokens=32, test_samples=4)
    assert any("windows of 32 tokens for calibration, of the 16 asked for" in note for note in found.notes)
    assert found.taken["sources"][1]["calibration"] < 8 == found.taken["sources"][0]["calibration"]


def test_a_forecast_counts_all_sources(letters, tokenizer):
    one, both = (extent(path, tokenizer, 32, None) for path in (f"{letters}/code.txt", f"{letters}/code.txt,{letters}/prose.txt=2"))
    assert both["documents"] == 2 * one["documents"] and both["tokens"] > 1.5 * one["tokens"]


def test_what_is_not_there_is_named(tokenizer, letters):
    with pytest.raises(DataError, match="missing.txt"):
        from_text(f"{letters}/code.txt,{letters}/missing.txt", tokenizer, tokens=32)


def test_whole_numbers_by_weight():
    assert apportioned(10, [1.0, 1.0, 1.0]) == [4, 3, 3] and apportioned(7, [3.0, 1.0]) == [5, 2] and apportioned(1, [1.0, 9.0]) == [0, 1]


def test_the_first_windows_of_a_source_are_the_same_whatever_its_weight():
    streams = [torch.arange(0, 400), torch.arange(1000, 1400)]
    few, many = (mixed(streams, weights, 4, 20, 0)[0] for weights in ([1.0, 3.0], [1.0, 1.0]))
    first = lambda rows: {tuple(row) for row in rows.tolist() if row[0] < 400}
    assert first(few) < first(many)
