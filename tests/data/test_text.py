import gzip
import hashlib
import json
import lzma
import warnings
from importlib import resources

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from modicum.core.errors import DataError, SettingError
from modicum.data import encode, read_documents, shipped, windows
from modicum.data.text import SEPARATOR

CHAT = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }}\n{% endfor %}"
)
JSON_SEPARATOR = "\u2028"  # a line separator to str.splitlines(), an ordinary character inside JSON


def toy_tokenizer(*, eos="</s>", chat=None):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "c": 5}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=eos, unk_token="<unk>", model_max_length=4)
    tokenizer.chat_template = chat
    return tokenizer


def write_lines(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


# Reading


@pytest.mark.parametrize("suffix, pack", [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress), (".GZ", gzip.compress)])
def test_text_file_is_split_at_the_separator_and_blank_documents_dropped(tmp_path, suffix, pack):
    file = tmp_path / f"book.txt{suffix}"
    file.write_bytes(pack(f"one é\n{SEPARATOR}  \n{SEPARATOR}two{SEPARATOR}".encode()))
    assert read_documents(file) == ["one é\n", "two"]
    assert read_documents(str(file)) == ["one é\n", "two"]


@pytest.mark.parametrize("suffix, pack", [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_json_lines_give_one_document_each(tmp_path, suffix, pack):
    records = [{"text": f"one{JSON_SEPARATOR}{SEPARATOR}more", "id": 3}, {"text": " "}, {"text": "two"}]
    content = "\r\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\r\n\r\n"
    (tmp_path / f"x.jsonl{suffix}").write_bytes(pack(content.encode()))
    assert read_documents(tmp_path / f"x.jsonl{suffix}") == [f"one{JSON_SEPARATOR}{SEPARATOR}more", "two"]


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read_documents(tmp_path / "a.txt") == ["hello"]


def test_named_file_may_have_any_suffix_or_be_hidden_or_a_link(tmp_path):
    (tmp_path / ".odd.name").write_text("hello")
    (tmp_path / "link").symlink_to(tmp_path / ".odd.name")
    assert read_documents(tmp_path / ".odd.name") == read_documents(tmp_path / "link") == ["hello"]


def test_folder_is_read_sorted_at_every_depth_without_hidden_files_links_and_other_suffixes(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    folder = tmp_path / "folder"
    for name, text in {
        "b.md": "b", "a/z.PY": "az", "a/b/c.rst": "abc", "empty.py": "", "c.json": "{}", "d.bin": "\0", ".hidden.txt": "no",
        ".git/e.txt": "no", "z": "no suffix",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    write_lines(folder / "c.jsonl", {"text": "c"})
    (folder / "d.txt.xz").write_bytes(lzma.compress(b"d"))
    (folder / "out.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (folder / "outdir").symlink_to(tmp_path / "outside")
    (folder / "twice.txt").symlink_to(folder / "b.md")
    assert read_documents(folder) == ["abc", "az", "b", "c", "d"]


def test_messages_are_rendered_by_the_chat_template(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file = write_lines(tmp_path / "chat.jsonl", {"messages": turns}, {"text": "plain", "messages": turns})
    assert read_documents(file, tokenizer=toy_tokenizer(chat=CHAT)) == ["<user> a\n<assistant> b\n", "plain"]


@pytest.mark.parametrize("tokenizer", [None, toy_tokenizer()], ids=["no tokenizer", "no template"])
def test_messages_without_a_chat_template_are_refused(tmp_path, tokenizer):
    file = write_lines(tmp_path / "chat.jsonl", {"text": "a"}, {"messages": [{"role": "user", "content": "a"}]})
    with pytest.raises(DataError, match=r"chat\.jsonl, line 2, holds `messages`.*chat template"):
        read_documents(file, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("{'text': 1}", "line 2, must be one JSON object"),
        ('{"text": "a"', "line 2, must be one JSON object"),
        ("[" * 100_000, "line 2, must be one JSON object"),
        ('["text"]', "line 2, must be an object with a string `text`"),
        ("{}", "line 2, must be an object with a string `text`"),
        ('{"text": null}', "line 2, must have a text under text, has null there"),
        (r'{"text": "\ud800"}', "line 2, must be valid Unicode"),
        ('{"messages": []}', "line 2, `messages` must be a list"),
        ('{"messages": [{"role": "user"}]}', "line 2, `messages` must be a list"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "line 2, must suit the tokenizer's chat template, which says: no robots"),
    ],
)
def test_bad_json_line_is_named(tmp_path, line, reason):
    file = write_lines(tmp_path / "x.jsonl", {"text": "fine"}, line)
    with pytest.raises(DataError, match=reason):
        read_documents(file, tokenizer=toy_tokenizer(chat=CHAT))


@pytest.mark.parametrize("prefix", [b"ab\xc3\xa9", b"\xef\xbb\xbf4"], ids=["accent", "mark"])
def test_wrong_encoding_names_file_and_byte(tmp_path, prefix):
    (tmp_path / "latin.txt").write_bytes(prefix + "é".encode("latin-1") + b" c")
    with pytest.raises(DataError, match=r"latin\.txt must be UTF-8, byte 4 of its content is 0xe9"):
        read_documents(tmp_path)


@pytest.mark.parametrize(
    "name, data",
    [("cut.txt.xz", lzma.compress(b"hello " * 99)[:-9]), ("cut.txt.gz", gzip.compress(b"hello " * 99, mtime=0)[:-9]), ("not.txt.gz", b"hello"),
     ("broken.txt.gz", gzip.compress(b"hello " * 99, mtime=0)[:12] + b"\xff" * 30)],
)  # fmt: skip
def test_damaged_compressed_file_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name} must be readable"):
        read_documents(tmp_path / name)


@pytest.mark.parametrize("content", ["", " \n\t", SEPARATOR])
def test_empty_file_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=r"a\.txt must hold text"):
        read_documents(tmp_path / "a.txt")


def test_empty_folder_and_missing_path_are_refused(tmp_path):
    (tmp_path / ".a.txt").write_text("hidden")
    with pytest.raises(DataError, match="must hold text, none was found; of a folder, links"):
        read_documents(tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.txt must be a file or folder"):
        read_documents(tmp_path / "nowhere.txt")


def test_shipped_texts_are_the_recorded_ones():
    record = json.loads((resources.files("modicum") / "demo" / "texts.json").read_text())
    for part in ("calibration", "validation", "test"):
        documents = shipped(part)
        assert len(documents) > 20
        whole = "".join(document + SEPARATOR for document in documents).encode()
        assert hashlib.sha256(whole).hexdigest() == record["parts"][part]["sha256"]
    with pytest.raises(SettingError, match="Did you mean test"):
        shipped("tests")


# Tokens


def test_encode_adds_the_end_token_alone_and_warns_of_nothing(caplog):
    logging.enable_propagation()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stream = encode(["a b c a b c", "b", "c </s>"], toy_tokenizer())
    finally:
        logging.disable_propagation()
    assert caplog.records == []  # six words exceed the tokenizer's limit of four, on purpose
    assert stream.dtype == torch.int64
    assert stream.tolist() == [3, 4, 5, 3, 4, 5, 2, 4, 2, 5, 2]


def test_encode_without_end_token_or_documents():
    assert encode(["a b", "c"], toy_tokenizer(eos=None)).tolist() == [3, 4, 5]
    empty = encode([], toy_tokenizer())
    assert empty.shape == (0,) and empty.dtype == torch.int64


def test_encode_by_the_demo_tokenizer_decodes_back():
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("modicum") / "demo" / "model"))
    documents = ["def f(x):\n    return 'é'\n", "two"]
    assert tokenizer.decode(encode(documents, tokenizer)) == "".join(document + SEPARATOR for document in documents)


def draw(stream, tokens, samples, seed=0):
    return windows(stream, tokens, samples, torch.Generator().manual_seed(seed))


@given(length=st.integers(1, 300), tokens=st.integers(1, 20), samples=st.integers(1, 40), fewer=st.integers(1, 40), seed=st.integers(0, 9))
def test_windows_are_disjoint_pieces_in_an_order_fixed_by_the_seed(length, tokens, samples, fewer, seed):
    stream = torch.arange(length)
    if length < tokens:
        with pytest.raises(DataError, match=f"needs {tokens} tokens and {length} were found"):
            draw(stream, tokens, samples, seed)
        return
    found = draw(stream, tokens, samples, seed)
    assert found.shape == (min(samples, length // tokens), tokens)
    assert torch.equal(found, found[:, :1] + torch.arange(tokens))  # contiguous
    assert found.unique().numel() == found.numel()  # without overlap
    assert torch.equal(draw(stream, tokens, fewer, seed)[:samples], found[:fewer])  # a larger count extends a smaller


def test_windows_differ_by_seed_and_leave_global_chance_alone():
    state = torch.random.get_rng_state()
    stream = torch.arange(1000)
    assert not torch.equal(draw(stream, 5, 20, seed=0), draw(stream, 5, 20, seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("tokens, samples", [(0, 1), (1, 0), (-1, 1)])
def test_windows_refuse_counts_below_one(tokens, samples):
    with pytest.raises(SettingError, match="at least 1"):
        draw(torch.arange(9), tokens, samples)
