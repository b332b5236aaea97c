from importlib import resources
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerFast

from modicum.core.errors import DataError, SettingError
from modicum.data import call, count_tokens, from_batches, from_text, shipped, slice_rows
from modicum.models.located import DEMO

PARTS = ("calibration", "validation", "test")


def parts_of(splits):
    return [getattr(splits, part) for part in PARTS]


@pytest.fixture(scope="module")
def numbers():
    """Tokenizer whose tokens are the words 0, 1, 2..., with these as ids and no end token."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(5000)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def write_numbers(path, *spans):
    path.write_text("<|endoftext|>".join(" ".join(map(str, span)) for span in spans))
    return path


# From text


def ids_of(part):
    return torch.cat([batch["input_ids"] for batch in part])


def test_text_is_divided_into_adjoining_regions_of_70_10_20(numbers, tmp_path):
    splits = from_text(write_numbers(tmp_path / "n.txt", range(1007)), numbers, samples=500, tokens=10, test_samples=500, batch=8)
    calibration, validation, test = (ids_of(part) for part in parts_of(splits))
    assert [len(calibration), len(validation), len(test)] == [70, 10, 20]
    assert sorted(calibration.flatten().tolist()) == list(range(700))
    assert sorted(validation.flatten().tolist()) == list(range(700, 800))
    assert sorted(test.flatten().tolist()) == list(range(800, 1000))
    assert [batch["input_ids"].shape for batch in splits.validation] == [(8, 10), (2, 10)]
    assert all(batch.keys() == {"input_ids"} for part in parts_of(splits) for batch in part)
    assert splits.source == str(tmp_path / "n.txt")
    assert any("70 windows of 10 tokens for calibration, of the 500" in note for note in splits.notes)


@settings(deadline=None, max_examples=25)
@given(words=st.integers(0, 400), tokens=st.integers(1, 40), samples=st.integers(1, 30), tests=st.integers(1, 9), seed=st.integers(0, 3))
def test_text_parts_are_disjoint_and_as_many_as_asked(numbers, tmp_path_factory, words, tokens, samples, tests, seed):
    file = write_numbers(tmp_path_factory.mktemp("text") / "n.txt", range(words), range(words, words + 20))
    options = {"samples": samples, "tokens": tokens, "test_samples": tests, "seed": seed, "batch": 4}
    if (words + 20) // tokens < 3:
        with pytest.raises(DataError, match=f"{3 * tokens} in all; {words + 20} were found"):
            from_text(file, numbers, **options)
        return
    splits = from_text(file, numbers, **options)
    found = [ids_of(part).flatten().tolist() for part in parts_of(splits)]
    assert len(set().union(*found)) == sum(map(len, found))
    short = 0
    for part, wanted in zip(found, (samples, max(1, tests // 2), tests)):
        assert 1 <= len(part) // tokens <= wanted
        short += len(part) // tokens < wanted
    assert len(splits.notes) == short
    assert splits.hashes == from_text(file, numbers, **options).hashes


def test_seed_draws_other_windows_from_the_same_regions(numbers, tmp_path):
    file = write_numbers(tmp_path / "n.txt", *(range(i, i + 100) for i in range(0, 4000, 100)))
    first, second = (from_text(file, numbers, samples=8, tokens=10, test_samples=8, seed=seed) for seed in (0, 1))
    assert not set(first.hashes.values()) & set(second.hashes.values())
    everything = [from_text(file, numbers, samples=999, tokens=10, test_samples=2000, seed=seed) for seed in (0, 1)]
    for part in PARTS:
        one, other = (set(ids_of(getattr(splits, part)).flatten().tolist()) for splits in everything)
        assert one == other
    more = from_text(file, numbers, samples=16, tokens=10, test_samples=8, seed=0)
    assert torch.equal(ids_of(more.calibration)[:8], ids_of(first.calibration))
    assert more.hashes["test"] == first.hashes["test"]


def test_order_and_repetition_of_documents_do_not_matter(numbers, tmp_path):
    spans = [range(i, i + 50) for i in range(0, 2000, 50)]
    plain = from_text(write_numbers(tmp_path / "a.txt", *spans), numbers, samples=9, tokens=10, test_samples=4)
    mixed = from_text(write_numbers(tmp_path / "b.txt", *spans[::-1], *spans[:7]), numbers, samples=9, tokens=10, test_samples=4)
    assert plain.hashes == mixed.hashes
    assert plain.notes == ()
    assert mixed.notes == ("7 of 47 documents repeat another and were left out.",)


def test_each_part_of_the_shipped_texts_is_drawn_from_its_own_text_alone():
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    splits = from_text(None, tokenizer, samples=12, tokens=48, test_samples=12)
    texts = {part: "".join(shipped(part)) for part in PARTS}
    for part, batches in zip(PARTS, parts_of(splits)):
        windows = [tokenizer.decode(row) for row in ids_of(batches)]
        whole = [text for text in windows if tokenizer.eos_token not in text]
        assert len(whole) >= 4 and all(text in texts[part] for text in whole)
        assert not any(text in texts[other] for text in whole for other in PARTS if other != part)


def test_shipped_texts_serve_where_no_path_is_given():
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("modicum") / "demo" / "model"))
    splits = from_text(None, tokenizer, samples=10, tokens=64, test_samples=6, batch=4)
    assert [[len(batch["input_ids"]) for batch in part] for part in parts_of(splits)] == [[4, 4, 2], [3], [4, 2]]
    assert splits.source == "shipped"
    assert len(splits.notes) == 1 and "shipped with modicum" in splits.notes[0]
    assert len(set(splits.hashes.values())) == 3
    with pytest.raises(DataError, match=r"one window needs 100000000 tokens"):
        from_text(None, tokenizer, tokens=100_000_000)


@pytest.mark.parametrize("setting", ["samples", "tokens", "batch", "test_samples"])
def test_text_counts_below_one_are_refused(numbers, setting):
    with pytest.raises(SettingError, match=f"{setting}=0 came"):
        from_text(None, numbers, **{setting: 0})


# From batches


def rows_of(part):
    """Numbers that mark the rows of batches made by ``numbered``."""
    return [int(row) for batch in part for row in (batch["x"] if isinstance(batch, dict) else batch[0])[:, 0]]


def numbered(sizes):
    start = 0
    for size in sizes:
        x = torch.arange(start, start + size)[:, None].repeat(1, 3).float()
        yield {"x": x, "y": x[:, 0] * 2}
        start += size


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 5), max_size=20), seed=st.integers(0, 3))
def test_batches_are_dealt_out_whole_and_once(sizes, seed):
    if len(sizes) < 3 and sum(sizes) < 3:
        with pytest.raises(DataError, match=f"at least three different rows, one for each part, {sum(sizes)} came"):
            from_batches(numbered(sizes), seed)
        return
    splits = from_batches(numbered(sizes), seed)
    found = [rows_of(part) for part in parts_of(splits)]
    assert all(found)
    assert sorted(chain(*found)) == list(range(sum(sizes)))
    for part in parts_of(splits):
        assert all(torch.equal(batch["y"], batch["x"][:, 0] * 2) for batch in part)
    if len(sizes) >= 3:
        assert sorted(len(batch["x"]) for part in parts_of(splits) for batch in part) == sorted(sizes)
        assert splits.notes == ()
    else:
        assert "rows were divided" in splits.notes[-1]
    assert splits.hashes == from_batches(numbered(sizes), seed).hashes


def test_shares_are_60_20_20_and_seeds_differ():
    splits = from_batches(numbered([2] * 20))
    assert [len(part) for part in parts_of(splits)] == [12, 4, 4]
    assert from_batches(numbered([2] * 20), seed=1).hashes != splits.hashes
    lone = from_batches(numbered([10]))
    assert [[len(batch["x"]) for batch in part] for part in parts_of(lone)] == [[6], [2], [2]]
    assert rows_of(from_batches(numbered([10]), seed=1).test) != rows_of(lone.test)


def test_kinds_of_batches_are_kept():
    x = torch.arange(12.0).view(4, 3)
    assert [type(batch) for batch in from_batches([x, x + 1, x + 2]).test] == [tuple]
    assert len(from_batches([[x, x], (x + 1, x), [x + 2, x]]).test[0]) == 2
    encoded = [BatchEncoding({"input_ids": torch.full((2, 3), i)}) for i in range(3)]
    assert all(type(batch) is dict for part in parts_of(from_batches(encoded)) for batch in part)
    for lone in (x, {"x": x}, [x]):
        assert sum(count_tokens(part) for part in parts_of(from_batches(lone))) == 4


def test_repeated_batches_are_kept_once():
    x = torch.arange(12.0).view(6, 2)
    splits = from_batches([x] * 8)
    assert sorted(rows_of(chain(*parts_of(splits)))) == [0, 2, 4, 6, 8, 10]
    assert splits.notes[0] == "7 of 8 batches repeat another and were left out."


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_inputs_are_named(bad):
    batches = list(numbered([2, 2, 2]))
    batches[1]["y"][1] = bad
    with pytest.raises(DataError, match="batch 1, 'y', must be finite"):
        from_batches(batches)


@pytest.mark.parametrize(
    "data, reason",
    [
        (7, "must be an iterable of batches, int came"),
        (["text"], "batch 0, 0, must be a dense tensor, str came"),
        ([{"x": torch.zeros(2), "mask": None}], "batch 0, 'mask', must be a dense tensor, NoneType came"),
        ([torch.zeros(2, 2).to_sparse()], "must be a dense tensor"),
        ([torch.zeros(4, 2), {}], "batch 1 must hold at least one row"),
        ([torch.zeros(0, 2)], "batch 0 must hold at least one row"),
        ([(torch.zeros(4, 2), torch.zeros(1, 2))], "those of batch 0 do not"),
        ([torch.tensor(1.0)], "those of batch 0 do not"),
    ],
)
def test_unusable_batches_are_refused(data, reason):
    with pytest.raises(DataError, match=reason):
        from_batches(data)


def test_whole_batches_need_no_shared_axis():
    batches = [{"x": torch.full((2, 3), float(i)), "positions": torch.arange(3)[None], "scale": torch.tensor(1.0)} for i in range(3)]
    assert [len(part) for part in parts_of(from_batches(batches))] == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64])
def test_hashes_tell_value_type_shape_and_name_apart(dtype):
    def test_hash(make):
        return from_batches([make(i) for i in range(3)]).hashes["test"]

    base = torch.ones(2, 2, dtype=dtype)
    columns = [base.clone().index_fill_(1, torch.tensor([1]), 0), base, base * 0]
    reference = test_hash(lambda i: {"x": columns[i]})
    assert test_hash(lambda i: {"x": columns[i].clone().T.contiguous().T}) == reference
    assert test_hash(lambda i: {"z": columns[i]}) != reference
    assert test_hash(lambda i: {"x": columns[i].reshape(1, 4)}) != reference
    assert test_hash(lambda i: {"x": columns[i].to(torch.int16 if dtype == torch.int8 else torch.complex128)}) != reference
    assert len(set(from_batches([{"x": column} for column in columns]).hashes.values())) == 3


# Batches in use


def test_call_passes_dicts_by_keyword_and_tuples_by_position():
    class Minus(nn.Module):
        def forward(self, a, b):
            return a - b

    a, b = torch.tensor([3.0]), torch.tensor([1.0])
    assert call(Minus(), {"b": b, "a": a}).item() == call(Minus(), (a, b)).item() == 2


def test_count_tokens_counts_ids_or_rows():
    ids = {"input_ids": torch.zeros(2, 5, dtype=torch.int64), "attention_mask": torch.zeros(2, 5)}
    assert count_tokens([ids, {"input_ids": torch.zeros(2, 5)}, {"pixels": torch.zeros(3, 4, 4)}, (torch.zeros(7, 2),)]) == 10 + 2 + 3 + 7
    assert count_tokens([(torch.tensor(1.0),)]) == 1
    assert count_tokens([]) == 0


def test_slice_rows_cuts_every_tensor():
    (batch,) = numbered([5])
    assert slice_rows(batch, 1, 3)["x"][:, 0].tolist() == [1, 2]
    assert slice_rows(batch, 3, 9)["y"].tolist() == [6, 8]
    (positional,) = slice_rows((batch["x"],), 0, 2)
    assert positional.shape == (2, 3)
    with pytest.raises(DataError, match=r"a: \[2, 3\], b: \[1\]"):
        slice_rows({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, 0, 1)


class Caching(torch.nn.Module):
    """Says with what it was called."""

    def forward(self, x, y=None, use_cache=True):
        return y, use_cache


@pytest.mark.parametrize(
    "batch, wanted", [({"x": 1}, False), ((1,), False), ((1, 2), False), ({"x": 1, "use_cache": True}, True), ((1, 2, True), True)]
)
def test_models_run_without_the_cache_of_generation_unless_the_batch_asks_for_it(batch, wanted):
    assert call(Caching(), batch)[1] is wanted
