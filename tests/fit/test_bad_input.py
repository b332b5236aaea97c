"""Bad input through the command line: one clear sentence, exit code 2, and nothing written."""

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import struct
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from modicum.cli.main import main
from modicum.models.located import DEMO
from modicum.testing import zoo

SMALL = ("--search-time", "0", "--samples", "4", "--tokens", "64", "--menu", "nearest bits=4,nearest bits=8", "--harm", "error")
WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A model in one file, with the demo's tokenizer."""
    return saved(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "sharded", max_shard_size="300KB")


def saved(path, **settings):
    model, _ = zoo.build("llama")
    model.resize_token_embeddings(1024, mean_resizing=False)
    model.save_pretrained(path, **settings)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


@pytest.fixture
def bad(plain, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(plain, tmp_path / "bad"))


@pytest.fixture
def bad_shards(sharded, tmp_path):
    return Path(shutil.copytree(sharded, tmp_path / "bad"))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Line {i} of a text about nothing but {i * i}.\n" for i in range(1000)))
    return path


def tree(folder):
    return {str(path): path.stat().st_size for path in sorted(folder.rglob("*"))}


def refused(tmp_path, *words, out="out", begun=False):
    """The one sentence with which a command stops; nothing is written but, where work had begun, what the same command continues from."""
    before = tree(tmp_path)
    added = ("--out", tmp_path / out) if out and "--out" not in words else ()
    result = CliRunner().invoke(main, [str(word) for word in (*words, *added)], prog_name="modicum", catch_exceptions=False)
    assert result.exit_code == 2 and result.stdout == ""
    *progress, line = result.stderr.splitlines()
    assert all(begun and re.match(r"\[\d+ s\] ", other) for other in progress), progress
    assert line.startswith("modicum: ") and line.endswith((".", "?")) and "Traceback" not in line and len(line) < 900
    written = {name for name in tree(tmp_path).items() ^ before.items()}
    partial = str(tmp_path / f"{out}.partial")
    assert all(begun and name.startswith(partial) for name, _ in written)
    return line


def fit_refused(tmp_path, model, *words, budget=("--bpw", "14"), **settings):
    return refused(tmp_path, "fit", model, *budget, *(() if "--menu" in words or "--method" in budget else SMALL), *words, **settings)


# Names and settings


@pytest.mark.parametrize(
    "words, said",
    [
        (("--bpw", "4", "--menu", "gtpq bits=4"), "Did you mean gptq"),
        (("--bpw", "4", "--menu", "gptq bit=4"), "Did you mean bits?"),
        (("--bpw", "4", "--menu", "gptq bits=four"), "gptq.bits: must be a whole number, got 'four'"),
        (("--bpw", "4", "--menu", "int9"), "must lie between 2 and 8"),
        (("--bpw", "4", "--menu", "int4,,int"), "is not known"),
        (("--bpw", "4", "--menu", "gptq bits"), "written name=value"),
        (("--bpw", "4", "--menu", "int4", "--group", "-5"), "must lie between -1"),
        (("--method", "wander keep=0.5"), "Did you mean wanda"),
        (("--method", "gptq bits=4 |"), "holds an empty step"),
        (("--method", ""), "holds an empty step"),
        (("--method", 'gptq "bits=4'), "cannot be read"),
        (("--method", "gptq bits=4 | blocks count=1"), "must come first"),
        (("--method", "blocks count=1 | flap keep=0.5"), "only one step"),
        (("--method", "wanda keep=0.5"), "Pass --target modicum."),
        (("--bpw", "4", "--target", "tranformers"), "Did you mean transformers?"),
        (("--bpw", "4", "--allocator", "integer_programme"), "Did you mean integer_program"),
        (("--bpw", "4", "--harm", "fishers"), "Did you mean fisher?"),
        (("--bpw", "14", "--device", "gpu"), "must be auto, cpu, cuda"),
        (("--bpw", "14", "--device", "cuda"), "must be auto or cpu"),
        (("--bpw", "4", "--samples", "0"), "samples: must be at least 1, got 0"),
        (("--bpw", "4", "--tokens", "0"), "tokens: must be at least 1, got 0"),
        (("--bpw", "4", "--micro-batch", "-1"), "micro_batch: must be at least 1, got -1"),
        (("--bpw", "four"), "bpw: must be a number such as 4.5, got 'four'."),
        (("--bpw", "14", "--ram", "much"), "must be a size such as"),
        (("--bpw", "14", "--ram", "4bpw"), "must be in bytes"),
        (("--bpw", "14", "--ram", "10MB", *SMALL), "--ram: must be at least"),
    ],
)
def test_settings_that_cannot_be(plain, tmp_path, words, said):
    few = () if "--tokens" in words else ("--tokens", "64")  # as many as the model has positions for
    assert said in refused(tmp_path, "fit", plain, *words, *few)


@pytest.mark.parametrize("words", [("--bits", "4"), ("--samples", "many")])
def test_wrong_usage_shows_the_usage(plain, tmp_path, words):
    before = tree(tmp_path)
    result = CliRunner().invoke(main, ["fit", str(plain), *words, "--out", str(tmp_path / "out")], prog_name="modicum")
    assert result.exit_code == 2 and result.stderr.startswith("Usage: ") and words[0] in result.stderr
    assert tree(tmp_path) == before


# Budgets


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "exactly one of a budget, a method or a plan must be given, got nothing"),
        (("--bpw", "4", "--method", "int4"), "exactly one of a budget, a method or a plan must be given, got budget and method"),
        (("--bpw", "0"), "must be a positive number"),
        (("--bpw", "-3"), "bpw: must be"),
        (("--bpw", "nan"), "bpw: must be"),
        (("--bpw", "inf"), "bpw: must be"),
        (("--size", "0MB"), "must be a positive number"),
        (("--size", "-1MB"), "must be a size such as"),
        (("--size", "4 parsecs"), "must be a size such as"),
        (("--size", "1"), "must be a size such as"),
    ],
)
def test_budgets_that_cannot_be(plain, tmp_path, words, said):
    assert said in refused(tmp_path, "fit", plain, *words)


def test_a_budget_out_of_reach_names_the_smallest_and_what_blocks_it(plain, text, tmp_path):
    line = fit_refused(tmp_path, plain, "--data", text, budget=("--bpw", "6"))
    assert "the smallest for target transformers and this menu is" in line and " bpw)" in line
    assert "model.embed_tokens.weight (262.144 kB, target: embedding)" in line
    assert "--target modicum reaches it: its smallest is" in line


def test_a_budget_out_of_reach_of_every_target_says_so(plain, text, tmp_path):
    assert "--target modicum does not reach it either" in fit_refused(tmp_path, plain, "--data", text, budget=("--size", "5kB"))


def test_the_smallest_that_is_named_is_reached(plain, text, tmp_path):
    line = fit_refused(tmp_path, plain, "--data", text, budget=("--bpw", "1"))
    smallest = float(line.partition("this menu is ")[2].split()[0]) * 1000
    assert "cannot be reached" in fit_refused(tmp_path, plain, "--data", text, budget=("--size", f"{smallest / 1000 - 0.001:.3f}kB"))
    words = ["fit", str(plain), "--size", f"{smallest / 1000:.3f}kB", *SMALL, "--data", str(text), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main, words, catch_exceptions=False).exit_code == 0


def test_a_pattern_that_keeps_nothing_is_a_slip(plain, text, tmp_path):
    assert "--keep 'lm_haed': must match a layer, matches none. Did you mean lm_head?" in fit_refused(
        tmp_path, plain, "--data", text, "--keep", "lm_haed"
    )


def test_layers_kept_that_leave_no_room(plain, text, tmp_path):
    line = fit_refused(tmp_path, plain, "--data", text, "--keep", "model.layers.*", "--keep", "lm_head", "--keep", "model")
    assert "cannot be reached" in line and "with --keep" in line


# Checkpoints


def test_a_directory_that_is_not_there(tmp_path):
    assert "no such directory" in fit_refused(tmp_path, tmp_path / "nothing")


def test_a_name_that_the_hub_does_not_have(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "could not be fetched from the hub" in fit_refused(tmp_path, "nobody/nothing-at-all")


def test_a_file_in_place_of_a_directory(plain, tmp_path):
    assert "must be a directory" in fit_refused(tmp_path, plain / "model.safetensors")


def test_an_empty_directory(tmp_path):
    (tmp_path / "bad").mkdir()
    assert "must hold config.json" in fit_refused(tmp_path, tmp_path / "bad")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'"llama"', b"[" * 100_000])
def test_a_config_that_is_no_object(bad, tmp_path, content):
    (bad / "config.json").write_bytes(content)
    assert "must be a JSON object" in fit_refused(tmp_path, bad)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_type": "nonesuch"}, "is not a config that Transformers knows"),
        ({"architectures": ["NonesuchForCausalLM"]}, "must name a class of Transformers"),
        ({"architectures": None}, "must name a class of Transformers"),
        ({"architectures": ["AutoConfig"]}, "must name a class of Transformers"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "Pass --trust-remote-code if you trust it."),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "its weights are quantized already (GPTQ)"),
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, "must not be quantized already but by compressed-tensors"),
        ({"hidden_size": 128}, "must have shape"),
        ({"intermediate_size": 64}, "must have shape (64, 64) by the config, has (128, 64)"),
        ({"num_hidden_layers": 4}, "must hold the weight model.layers.3"),
        ({"vocab_size": 2048}, "must have shape (2048, 64) by the config, has (1024, 64)"),
        ({"hidden_size": "wide"}, "config.json"),
        ({"num_attention_heads": 0}, "config.json"),
    ],
)
def test_a_config_that_does_not_suit(bad, tmp_path, change, said):
    config = json.loads((bad / "config.json").read_text()) | change
    (bad / "config.json").write_text(json.dumps(config))
    assert said in fit_refused(tmp_path, bad)


def test_code_of_a_model_is_not_run(bad, tmp_path):
    config = json.loads((bad / "config.json").read_text()) | {"auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
    (bad / "config.json").write_text(json.dumps(config))
    (bad / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    fit_refused(tmp_path, bad)
    assert not (tmp_path / "ran").exists()


def test_a_shard_that_is_missing(bad_shards, tmp_path):
    gone = sorted(bad_shards.glob("*.safetensors"))[1]
    gone.unlink()
    line = fit_refused(tmp_path, bad_shards)
    assert gone.name in line and "it is missing" in line


@pytest.mark.parametrize("left", [0, 4, 200, -1])
def test_a_shard_that_is_cut_short(bad_shards, tmp_path, left):
    cut = sorted(bad_shards.glob("*.safetensors"))[1]
    os.truncate(cut, left if left >= 0 else cut.stat().st_size + left)
    assert cut.name in fit_refused(tmp_path, bad_shards)


@pytest.mark.parametrize("home", ["../plain/model.safetensors", "/etc/passwd", "..", "", "a\0b", "sub/model.safetensors"])
def test_an_index_that_points_outside(bad_shards, tmp_path, home):
    index = json.loads((bad_shards / "model.safetensors.index.json").read_text())
    index["weight_map"][WEIGHT] = home
    (bad_shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "must be named by a plain file name" in fit_refused(tmp_path, bad_shards)


def test_a_link_that_leads_outside(bad, plain, tmp_path):
    (bad / "model.safetensors").unlink()
    (bad / "model.safetensors").symlink_to(plain / "model.safetensors")
    assert "links outside" in fit_refused(tmp_path, bad)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "not json", '{"weight_map": {}}'])
def test_an_index_that_is_malformed(bad_shards, tmp_path, index):
    (bad_shards / "model.safetensors.index.json").write_text(index)
    fit_refused(tmp_path, bad_shards)


def _header(path, change):
    """Rewrite the header of a safetensors file, its data untouched."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    change(header)
    body = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body + raw[8 + size :])


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header[WEIGHT].update(shape=[64, 1 << 40]),
        lambda header: header[WEIGHT].update(shape=[1 << 40, 1 << 40]),
        lambda header: header[WEIGHT].update(shape=[-64, -128]),
        lambda header: header[WEIGHT].update(shape=[64, 127]),
        lambda header: header[WEIGHT].update(data_offsets=[0, 1 << 60]),
        lambda header: header[WEIGHT].update(data_offsets=[8, 4]),
        lambda header: header[WEIGHT].update(data_offsets=[0, 64 * 128 * 4]),
        lambda header: header[WEIGHT].update(dtype="F99"),
        lambda header: header[WEIGHT].update(dtype="F64"),
        lambda header: header.update({WEIGHT: None}),
    ],
)
def test_a_header_that_lies(bad, tmp_path, change):
    _header(bad / "model.safetensors", change)
    assert "model.safetensors" in fit_refused(tmp_path, bad)


@pytest.mark.parametrize("claimed", [1 << 62, 1 << 33, 0])
def test_a_header_length_that_lies(bad, tmp_path, claimed):
    path = bad / "model.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + path.read_bytes()[8:])
    assert "model.safetensors" in fit_refused(tmp_path, bad)


def test_a_pickled_checkpoint_is_not_opened(bad, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (bad / "model.safetensors").unlink()
    torch.save({"a": Bomb()}, bad / "pytorch_model.bin")
    assert "pass --allow-pickle if you trust its author" in fit_refused(tmp_path, bad)
    fit_refused(tmp_path, bad, "--allow-pickle")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle"])
def test_a_pickle_that_cannot_be_read(bad, tmp_path, content):
    (bad / "model.safetensors").unlink()
    (bad / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin" in fit_refused(tmp_path, bad, "--allow-pickle")


@pytest.mark.parametrize("words", [SMALL, (*SMALL[:-1], "fisher")], ids=["error", "fisher"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad, text, tmp_path, value, words):
    spoil(bad, WEIGHT, value)
    line = refused(tmp_path, "fit", bad, "--bpw", "14", *words, "--data", text, begun=True)
    assert WEIGHT in line and "must be finite, hold NaN or Inf" in line


@pytest.mark.parametrize("name, site", [("model.layers.1.input_layernorm.weight", "model.layers.1."), ("model.embed_tokens.weight",) * 2])
def test_weights_outside_the_sites_that_are_not_finite_are_traced(bad, text, tmp_path, name, site):
    spoil(bad, name, float("nan"))
    assert site in fit_refused(tmp_path, bad, "--data", text, begun=True)


@pytest.mark.parametrize("method", ["nearest bits=8", "gptq bits=8"])
def test_weights_that_are_not_finite_are_named_for_a_method(bad, text, tmp_path, method):
    spoil(bad, WEIGHT, float("nan"))
    words = ("--data", text, "--samples", "4", "--tokens", "64")
    assert WEIGHT in fit_refused(tmp_path, bad, *words, budget=("--method", method), begun=True)


def spoil(directory, name, value):
    tensors = load_file(directory / "model.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


# Text


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "must hold text, none was found"),
        (b" \n\t\n", "must hold text, none was found"),
        (b"too short", "Give more text or ask for fewer tokens a window."),
        ("Grüße an alle. ".encode("latin-1") * 500, "must be UTF-8, byte 2"),
        ("Text. ".encode("utf-16") * 500, "must be UTF-8, byte 0"),
    ],
)
def test_text_that_cannot_be_used(plain, tmp_path, content, said):
    (tmp_path / "text.txt").write_bytes(content)
    assert said in fit_refused(tmp_path, plain, "--data", tmp_path / "text.txt")


@pytest.mark.parametrize("name", ["text.jsonl", "text.txt.xz", "text.txt.gz"])
def test_text_files_that_are_broken(plain, tmp_path, name):
    (tmp_path / name).write_text("{broken")
    assert name in fit_refused(tmp_path, plain, "--data", tmp_path / name)


def test_text_that_is_not_there(plain, tmp_path):
    assert "none is there" in fit_refused(tmp_path, plain, "--data", tmp_path / "nothing.txt")


def test_a_folder_without_text(plain, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "must hold text, none was found" in fit_refused(tmp_path, plain, "--data", tmp_path / "folder")


def test_text_for_a_model_without_a_tokenizer(bad, text, tmp_path):
    for file in bad.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer, which text needs" in fit_refused(tmp_path, bad, "--data", text)


def test_a_tokenizer_that_cannot_be_read(bad, text, tmp_path):
    (bad / "tokenizer.json").write_text("{")
    assert "its tokenizer cannot be read" in fit_refused(tmp_path, bad, "--data", text)


def test_a_tokenizer_of_another_model(bad, text, tmp_path):
    zoo.build("llama")[0].save_pretrained(bad)  # 256 tokens, where the tokenizer has 1024
    line = fit_refused(tmp_path, bad, "--data", text)
    assert "token" in line and "256" in line


def test_windows_longer_than_the_model_takes(text, tmp_path):
    model = zoo.build("gpt2")[0]
    model.resize_token_embeddings(1024, mean_resizing=False)
    model.save_pretrained(tmp_path / "bad")
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "bad")
    line = refused(
        tmp_path, "fit", tmp_path / "bad", "--bpw", "8", "--target", "modicum", "--tokens", "65", "--samples", "4", "--data", text
    )
    assert "65" in line and "64" in line


# Where to write


def test_an_output_that_exists(plain, text, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("ten years of work")
    assert "exists already" in fit_refused(tmp_path, plain, "--data", text)


def test_an_output_below_a_file(plain, text, tmp_path):
    assert "its folder must be writable" in fit_refused(tmp_path, plain, "--data", text, "--out", text / "out", out="")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_in_a_folder_that_is_not_writable(plain, text, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "its folder must be writable" in fit_refused(tmp_path, plain, "--data", text, out="closed/out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_an_output_where_the_system_allows_none(plain, text, tmp_path):
    assert "/proc/modicum" in fit_refused(tmp_path, plain, "--data", text, "--out", "/proc/modicum/out", out="")


@contextlib.contextmanager
def file_size_limit(limit):
    """No file of this process may grow beyond ``limit`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, 20_000, 300_000, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (1_000, 60_000))])
def test_files_that_may_not_grow(plain, text, tmp_path, limit):
    with file_size_limit(limit):
        line = refused(tmp_path, "fit", plain, "--bpw", "14", *SMALL[:-1], "fisher", "--data", text, begun=True)
    assert str(tmp_path / "out") in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("writes", [6, *(pytest.param(writes, marks=pytest.mark.slow) for writes in (1, 30))])
def test_a_disk_that_fills_up_and_is_freed(plain, text, tmp_path, monkeypatch, writes):
    pwrite, left = os.pwrite, iter(range(writes, -1, -1))

    def filling(*arguments):
        if next(left, 0) <= 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", filling)
        line = fit_refused(tmp_path, plain, "--data", text, begun=True)
    assert "space" in line.lower() and not (tmp_path / "out").exists()
    words = ["fit", str(plain), "--bpw", "14", *SMALL, "--data", str(text), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main, words, catch_exceptions=False).exit_code == 0
    assert not (tmp_path / "out.partial").exists()


# Plans and receipts


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "must be a readable JSON file"),
        (b"\xff\xfe", "must be a readable JSON file"),
        (b"[" * 100_000, "plan"),
        (b"[]", "must be an object of format modicum-plan"),
        ({"format": "other"}, "must be an object of format modicum-plan"),
        ({"version": 99}, "must be an object of format modicum-plan, version 1"),
        ({"target": 1}, "target must be a text"),
        ({"target": "tranformers"}, "Did you mean transformers?"),
        ({"options": []}, "options must map site names to option texts"),
        ({"options": {"lm_head.weight": 4}}, "options must map site names to option texts"),
        ({"options": {"lm_head.weigth": "int4"}}, "Did you mean lm_head.weight"),
        ({"options": {"lm_head.weight": "gtpq"}}, "Did you mean gptq"),
        ({"options": {"lm_head.weight": "gptq bits=40"}}, "must lie between 2 and 8"),
        ({"options": {"lm_head.weight": "blocks count=1"}}, "whole model"),
        ({"options": {"model": "gptq bits=4"}}, "whole model"),
        ({"options": {"lm_head.weight": "wanda keep=0.5"}}, "cannot hold"),
        ({"options": {"model.embed_tokens.weight": "int4"}}, "cannot hold"),
        ({"cuts": 1}, "cuts must map"),
        ({"notes": 1}, "plan"),
    ],
)
def test_a_plan_that_is_malformed(plain, text, tmp_path, body, said):
    good = {
        "format": "modicum-plan",
        "version": 1,
        "target": "transformers",
        "options": {"lm_head.weight": "int8"},
        "cuts": {},
        "notes": [],
    }
    (tmp_path / "plan.json").write_bytes(body if isinstance(body, bytes) else json.dumps(good | body).encode())
    words = ("--data", text, "--samples", "4", "--tokens", "64", "--plan", tmp_path / "plan.json")
    assert said in refused(tmp_path, "fit", plain, *words)


def test_a_plan_that_is_not_there(plain, tmp_path):
    assert "must be a readable JSON file" in refused(tmp_path, "fit", plain, "--plan", tmp_path / "none.json")


@pytest.fixture(scope="session")
def written(plain, tmp_path_factory):
    """What ``fit`` wrote."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "text.txt").write_text("".join(f"Line {i} of a text about nothing but {i * i}.\n" for i in range(1000)))
    words = ["fit", str(plain), "--method", "nearest bits=8", "--samples", "4", "--tokens", "64", "--data", str(folder / "text.txt")]
    assert CliRunner().invoke(main, [*words, "--out", str(folder / "out")], catch_exceptions=False).exit_code == 0
    return folder / "out"


def cut(receipt, *path):
    for name in path[:-1]:
        receipt = receipt[name]
    del receipt[path[-1]]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda receipt: receipt.update(format="another"), "must be an object of format modicum-receipt"),
        (lambda receipt: receipt.update(version=99), "must be of version 1"),
        (lambda receipt: cut(receipt, "seed"), "seed is missing"),
        (lambda receipt: cut(receipt, "model", "name"), "receipt"),
        (lambda receipt: receipt.update(model=None), "receipt"),
        (lambda receipt: receipt.update(data=[]), "receipt"),
        (lambda receipt: cut(receipt, "data", "source"), "receipt"),
        (lambda receipt: receipt["request"].update(samples="many"), "samples"),
        (lambda receipt: receipt.update(seed="first"), "seed"),
        (lambda receipt: receipt["model"].update(name="/nowhere/at/all"), "no such directory"),
        (lambda receipt: receipt["data"].update(source="/nowhere/at/all"), "none is there"),
    ],
)
def test_a_receipt_that_is_malformed(written, tmp_path, change, said):
    before = Path(shutil.copytree(written, tmp_path / "before"))
    receipt = json.loads((before / "receipt.json").read_text())
    change(receipt)
    (before / "receipt.json").write_text(json.dumps(receipt))
    assert said in refused(tmp_path, "export", before, "--target", "modicum")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_receipt_that_is_no_receipt(written, tmp_path, content):
    before = Path(shutil.copytree(written, tmp_path / "before"))
    (before / "receipt.json").write_bytes(content)
    assert "receipt" in refused(tmp_path, "export", before, "--target", "modicum")
