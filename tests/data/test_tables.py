"""Tables of text: which column is read, what of it is told, and what is refused."""

import bz2
import csv
import gzip
import json
import tracemalloc

import pytest

from modicum.core.errors import DataError, SettingError
from modicum.data import from_text, read_documents
from modicum.data.files import read_text
from modicum.data.text import read_all

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

TEXTS = ['one, "two"\nthree', "four é", "five; six\tseven"]


def write_csv(path, names, rows, **settings):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, **settings)
        writer.writerows([names, *rows])
    return path


def numbered(name="text"):
    return ["id", name, "stars"], [[str(place), text, "5"] for place, text in enumerate(TEXTS)]


# The column


@pytest.mark.parametrize("name", ["text", "Content", "review", " body "])
@pytest.mark.parametrize("delimiter, suffix", [(",", "csv"), (";", "csv"), ("|", "csv"), ("\t", "csv"), ("\t", "tsv")])
def test_a_table_gives_its_text_column_and_nothing_beside_it(tmp_path, name, delimiter, suffix):
    path = write_csv(tmp_path / f"a.{suffix}", *numbered(name), delimiter=delimiter)
    assert read_documents(path) == TEXTS
    assert read_all(path).columns == {name.strip()}


def test_a_table_of_one_column_needs_no_name(tmp_path):
    assert read_documents(write_csv(tmp_path / "a.csv", ["was"], [["a b"], ["c"]])) == ["a b", "c"]


@pytest.mark.parametrize("pack, suffix", [(gzip.compress, ".gz"), (bz2.compress, ".bz2")])
def test_tables_may_be_compressed(tmp_path, pack, suffix):
    plain = write_csv(tmp_path / "a.csv", *numbered())
    (tmp_path / f"b.csv{suffix}").write_bytes(pack(plain.read_bytes()))
    assert read_documents(tmp_path / f"b.csv{suffix}") == TEXTS


def test_a_column_is_named_or_numbered_where_there_is_no_header(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["1", "bad", "first words"], [["2", "good", "more words"]])
    assert read_documents(path, text_column="first words") == ["more words"]
    assert read_documents(path, text_column="3") == ["first words", "more words"]
    assert read_documents(path, text_column="1") == ["2"]  # a header's name comes first


@pytest.mark.parametrize(
    "names, asked, said",
    [
        (
            ["id", "title", "comment"],
            None,
            "has the columns id, title, comment; which holds the text cannot be told. Name it with --text-column",
        ),
        (["id", "content", "body"], None, "which holds the text cannot be told"),
        (["id", "title", "comment"], "coment", "must have the column 'coment' that --text-column names, has not. Did you mean comment?"),
        ([f"c{place}" for place in range(14)], None, "c8, c9 and 4 more; which holds"),
        (["text", "text", "id"], None, "must have one column 'text', has several"),
    ],
)
def test_a_column_that_cannot_be_told_is_refused_with_the_names(tmp_path, names, asked, said):
    path = write_csv(tmp_path / "a.csv", names, [["x"] * len(names)])
    with pytest.raises(DataError, match=said.replace("?", r"\?")):
        read_documents(path, text_column=asked)


# What does not hold together


@pytest.mark.parametrize(
    "content, said",
    [
        ("id,text\n1,a\n2,b,c\n", "line 3, must have 2 fields as the first line has, has 3"),
        ("id,text\n1,a\n\n2\n", "line 4, must have 2 fields as the first line has, has 1"),
        ('id,text\n1,"a\n2,b\n', "line 2, must be a row of a table, the reader says: unexpected end of data"),
        ('id,text\n1,"a"b\n', "line 2, must be a row of a table"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, content, said):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        read_documents(tmp_path / "a.csv")


def test_tabs_may_divide_fields_with_stray_quotes(tmp_path):
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"so" he said\n2\t5" long\n')
    assert read_documents(tmp_path / "a.tsv") == ['"so" he said', '5" long']


def test_fields_may_be_longer_than_the_reader_allows_by_itself(tmp_path):
    limit, long = csv.field_size_limit(), "word " * 60_000
    assert read_documents(write_csv(tmp_path / "a.csv", ["text"], [[long]])) == [long]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    "name, raw, said",
    [
        ("a.csv", "id,text\n1,é\n".encode("utf-16"), "must be UTF-8|must be text"),
        ("a.csv", "id,text\n1,é\n".encode("latin-1"), "must be UTF-8, byte 10"),
        ("a.txt", b"%PDF-1.7 plain after all", "must be text, it is a PDF"),
        ("a.doc", b"PK\x03\x04 and more", "must be text, it is a zip archive or an office document"),
        ("a.txt", b"hello\0there", "must be text, it is binary: it holds zero bytes"),
        ("a.csv", gzip.compress(b"text\na\n", mtime=0), "must be text, it is compressed by gzip"),
        ("a.parquet", b"PAR1 and no more", "must be a readable Parquet file"),
        ("a.parquet", b"", "must be a readable Parquet file"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, name, raw, said):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=said):
        read_documents(tmp_path / name)


# JSON


def json_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_json_lines_may_call_their_text_otherwise(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"id": 1, "review": "a"}, {"id": 2, "review": "b"})
    assert read_documents(path) == ["a", "b"]
    path = json_lines(tmp_path / "b.ndjson", {"id": 1, "said": "a"}, {"id": 2, "said": "b"})  # the only one that holds text
    assert read_documents(path) == ["a", "b"]
    path = json_lines(tmp_path / "c.jsonl", {"one": "a", "two": "b"})
    assert read_documents(path, text_column="two") == ["b"]
    with pytest.raises(DataError, match=r"c\.jsonl, line 1, has the columns one, two; which holds the text cannot be told"):
        read_documents(path)


def test_lines_that_lack_the_column_of_those_before_are_named(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", {"content": "a"}, {"body": "b"})
    with pytest.raises(DataError, match="line 2, must be an object with `content`, as those before it"):
        read_documents(path)
    path = json_lines(tmp_path / "b.jsonl", {"review": "a"}, {"review": 3})
    with pytest.raises(DataError, match="line 2, must have a text under review, has 3 there"):
        read_documents(path)


@pytest.mark.parametrize(
    "body, found",
    [
        ([{"text": "a"}, {"text": "b"}], ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        ({"version": 1, "data": [{"content": "a", "id": 3}]}, ["a"]),
        ({"text": ["a", "b"], "id": [1, 2]}, ["a", "b"]),
        ({"text": "a"}, ["a"]),
    ],
)
def test_json_holds_one_list(tmp_path, body, found):
    (tmp_path / "a.json").write_text(json.dumps(body, indent=1))
    assert read_documents(tmp_path / "a.json") == found


@pytest.mark.parametrize(
    "text, said",
    [('{"a": [{"x": "1"}], "b": ["y"]}', "one list of objects or texts, holds 2"), ("[1, 2]", "holds none"), ("[" * 10**5, "one JSON value"),
     ('{"a": 1', "one JSON value"), ("3", "holds none")],
)  # fmt: skip
def test_json_of_another_shape_is_refused(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read_documents(tmp_path / "a.json")


def test_json_lines_may_be_called_json(tmp_path):
    assert read_documents(json_lines(tmp_path / "a.json", {"text": "a"}, {"text": "b"})) == ["a", "b"]


# Parquet


def write_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_gives_its_text_column_whatever_the_file_is_called(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", id=[1, 2, 3, 4], content=[*TEXTS, None])
    assert read_documents(path) == TEXTS and read_all(path).blank == 1
    assert read_documents(path.rename(tmp_path / "a.txt")) == TEXTS
    path = write_parquet(tmp_path / "b.parquet", id=[1, 2], said=["a", "b"], score=[0.5, 1.0])
    assert read_documents(path) == ["a", "b"]  # the only column of text
    with pytest.raises(DataError, match="column 'id', must hold text, holds int64"):
        read_documents(path, text_column="id")
    with pytest.raises(DataError, match="has the columns one, two; which holds"):
        read_documents(write_parquet(tmp_path / "c.parquet", one=["a"], two=["b"]))


@pytest.mark.slow
def test_a_text_that_many_rows_share_is_not_copied_for_each(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=["x" * 100_000] * 50_000)
    assert path.stat().st_size < 1_000_000
    found = read_all(path, most=2_000_000)
    assert found.cut and len(found.texts) == 20


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", text=["a"])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow, not installed here\. Run: pip install 'modicum\[parquet\]'"):
        read_documents(path)


# Folders, and how much is read


def test_a_folder_may_mix_texts_and_tables(tmp_path):
    (tmp_path / "a.txt").write_text("plain")
    write_csv(tmp_path / "b.csv", *numbered())
    write_parquet(tmp_path / "c.parquet", text=["deep"])
    (tmp_path / "d.json").write_text('{"setting": 1}')
    found = read_all(tmp_path)
    assert found.texts == ["plain", *TEXTS, "deep"] and found.files == 3 and found.columns == {"text"}


def test_json_in_a_folder_is_read_where_there_is_nothing_else(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "a"}]')
    assert read_documents(tmp_path) == ["a"]


def test_a_column_is_asked_for_where_there_is_a_table(tmp_path, toy):
    (tmp_path / "a.txt").write_text("a b c " * 50)
    with pytest.raises(DataError, match="must hold a table for --text-column"):
        read_documents(tmp_path, text_column="text")
    with pytest.raises(SettingError, match="names a column of --data, which was not given"):
        from_text(None, toy, text_column="text")


def test_only_so_much_is_read_and_unpacked(tmp_path):
    raw = b"".join(b"line %d\n" % place for place in range(400_000))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(raw, 1))
    del raw
    tracemalloc.start()
    text = read_text(tmp_path / "a.txt.gz", 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text.cut and len(text.value) <= 10_000 and text.value.endswith("\n") and peak < 2_000_000


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_of_a_longer_table_whole_rows_are_read(tmp_path, name):
    rows = [f"row {place} has\ntwo lines" for place in range(200)]
    path = tmp_path / name
    write_csv(path, ["text"], [[row] for row in rows]) if name == "a.csv" else json_lines(path, *({"text": row} for row in rows))
    for most in (600, 611, 622):
        found = read_all(path, most=most)
        assert found.cut and found.texts == rows[: len(found.texts)] and len(found.texts) > 15


def test_characters_that_the_end_divides_are_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("é" * 100)
    assert read_text(tmp_path / "a.txt", 33).value == "é" * 16


# What was taken is told


@pytest.fixture
def toy():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def test_splits_say_what_was_taken(tmp_path, toy):
    rows = [[str(place), "a b " * place] for place in range(1, 21)]
    path = write_csv(tmp_path / "a.csv", ["id", "text"], [*rows, ["21", " "], ["22", "a b "]])
    found = from_text(path, toy, samples=4, tokens=10, test_samples=2)
    used = {"used_tokens": 4 * 10 + 10 + 2 * 10, "share": 70 / 420}
    assert found.taken == {"kind": "text", "files": 1, "documents": 20, "tokens": 420, "columns": ["text"], **used}
    assert found.notes == ("1 of 21 documents repeat another and were left out.", "1 rows without text were left out.")


def test_splits_of_more_than_is_read_say_so(tmp_path, toy, monkeypatch):
    monkeypatch.setattr("modicum.data.files.MOST", 1000)
    monkeypatch.setattr("modicum.data.text.read_all.__kwdefaults__", {**read_all.__kwdefaults__, "most": 1000})
    (tmp_path / "a.txt").write_text("a b a a b\n" * 1000)
    found = from_text(tmp_path, toy, samples=4, tokens=10, test_samples=2)
    assert "The text is longer than is read: its first 1000 characters were." in found.notes
