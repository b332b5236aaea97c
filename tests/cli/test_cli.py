import dataclasses
import errno
import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner
from tqdm import tqdm
from transformers.utils import logging

from modicum import __version__
from modicum.cli import show
from modicum.cli.main import fit as fit_command
from modicum.cli.main import main
from modicum.core.errors import ModelError
from modicum.core.method import registry
from modicum.fit.request import Request
from modicum.models.open import DEMO
from modicum.testing import zoo

SMALL = ("--samples", "4", "--tokens", "16", "--menu", "int4,int8", "--harm", "error")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "twin"
    zoo.tied_twin()[0].save_pretrained(path)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """A directory that ``fit`` wrote through the command line, and what was printed; in a process of its own, as a shell would."""
    out = tmp_path_factory.mktemp("out") / "small"
    words = [sys.executable, "-m", "modicum", "fit", str(model), "--bpw", "9", *SMALL, "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out, done


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="modicum", catch_exceptions=False)


def refused(*words):
    """The one sentence with which a command stops."""
    result = run(*words)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("modicum: ") and line.endswith((".", "?"))
    return line


# Help


@pytest.mark.parametrize("words", [("--help",), ("fit", "--help"), ("eval", "-h"), ("--version",)])
def test_help_answers_before_anything_heavy_is_imported(words):
    code = (
        "import sys\nfrom modicum.cli.main import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'scipy', 'rich', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout or __version__ in done.stdout


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "modicum", "fit", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("Usage: modicum fit [OPTIONS] MODEL")


def test_defaults_shown_are_those_of_the_library():
    known = {field.name: field.default for field in dataclasses.fields(Request)}
    shown = {option.name: option.default for option in fit_command.params if option.name in known and option.name != "keep"}
    stated = {name: default for name, default in shown.items() if isinstance(default, str | int) and not isinstance(default, bool)}
    assert {"samples", "tokens", "batch", "group", "seed", "device", "allocator", "harm"} <= stated.keys()
    assert stated == {name: known[name] for name in stated}


# Methods


def test_list_names_every_method():
    result = run("list")
    assert result.exit_code == 0
    assert all(key in result.stdout for key in registry())
    gptq = next(line for line in result.stdout.splitlines() if line.startswith("quantize/gptq"))
    assert "Round column by column" in gptq and "covariance" in gptq and gptq.rstrip().endswith("2022")


def test_list_of_one_family_as_json():
    rows = json.loads(run("list", "--family", "prune", "--json").stdout)
    assert {row["key"] for row in rows} == {key for key in registry() if key.startswith("prune/")}
    assert next(row for row in rows if row["key"] == "prune/wanda")["paper"]["arxiv"] == "2306.11695"


def test_list_of_an_unknown_family_offers_the_near_ones():
    assert "Did you mean quantize?" in refused("list", "--family", "quantise")


@pytest.mark.parametrize("key", sorted(registry()))
def test_explain_tells_each_method_and_its_settings(key):
    result, cls = run("explain", key), registry()[key]
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{key}\n\n{cls.__doc__.strip().splitlines()[0]}")
    assert all(field.name in result.stdout for field in dataclasses.fields(cls))


def test_explain_shows_defaults_bounds_choices_and_paper():
    text = run("explain", "gptq").stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert rows["bits"].split()[:5] == ["bits", "4", "2", "to", "8"]
    assert "static, none" in rows["order"]
    assert rows["paper:"].endswith("2022, arXiv 2210.17323)")


def test_cite_gives_bibtex():
    text = run("cite", "sparsegpt").stdout
    assert text.startswith("@misc{prune-sparsegpt,") and "eprint = {2301.00774}" in text and text.rstrip().endswith("}")


def test_cite_without_a_paper_says_so():
    key = next(key for key, cls in registry().items() if cls.paper is None)
    assert "comes from no paper" in refused("cite", key)


@pytest.mark.parametrize("command", ["explain", "cite"])
def test_unknown_methods_offer_the_near_ones(command):
    assert "Did you mean sparsegpt" in refused(command, "sparsgpt")


# What the caller can cause


@pytest.mark.parametrize(
    "words, said",
    [
        (("fit", "nowhere", "--bpw", "4"), "no such directory"),
        (("fit", "{model}"), "exactly one of a budget, a method or a plan must be given, got nothing"),
        (("fit", "{model}", "--bpw", "4", "--size", "1MB"), "exactly one budget"),
        (("fit", "{model}", "--size", "4 apples"), "must be a size such as 4.5MB"),
        (("fit", "{model}", "--bpw", "4", "--target", "transformer"), "Did you mean transformers?"),
        (("fit", "{model}", "--bpw", "4", "--menu", "gptk"), "is not known"),
        (("fit", "{model}", "--bpw", "4", "--harm", "none"), "must be fisher or error"),
        (("fit", "{model}", "--plan", "{model}/config.json"), "must be an object of format modicum-plan"),
        (("fit", "{model}", "--bpw", "4", "--data", "{model}/nothing.txt", "--json"), "none is there"),
        (("fit", "{model}", "--bpw", "1", "--samples", "4", "--tokens", "16", "--out", "{model}/x", "--json"), "cannot be reached"),
        (("fit", "{model}", "--bpw", "9", "--out", "{model}"), "exists already"),
        (("eval", "{model}", "--tokens", "0"), "at least 1"),
        (("eval", "nowhere", "--json"), "no such directory"),
        (("export", "{model}", "--target", "modicum", "--out", "x"), "must be a readable JSON file"),
    ],
)
def test_bad_input_is_told_in_one_sentence(model, words, said):
    assert said in refused(*(word.replace("{model}", str(model)) for word in words))
    assert not (model / "x").exists()


@pytest.mark.parametrize("words", [("fit",), ("fit", "demo", "--bpw", "four"), ("frobnicate",), ("export", "demo")])
def test_wrong_usage_exits_with_two(words):
    result = run(*words)
    assert result.exit_code == 2 and "Usage:" in result.stderr


def test_interrupted_fit_says_that_it_continues(monkeypatch):
    assert raised_by_fit(monkeypatch, KeyboardInterrupt()) == (130, "modicum: interrupted. The same command continues from what is done.\n")


def test_interrupted_eval_promises_nothing(monkeypatch):
    def evaluate(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("modicum.receipt.evaluate", evaluate)
    result = run("eval", "demo")
    assert (result.exit_code, result.stderr) == (130, "modicum: interrupted.\n")


def test_full_disk_is_told_in_one_sentence(monkeypatch):
    code, line = raised_by_fit(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "out/x"))
    assert code == 2 and line.startswith("modicum: out/x: no space is left")


def test_messages_of_several_lines_become_one(monkeypatch):
    assert raised_by_fit(monkeypatch, ModelError("a:\n  b.")) == (2, "modicum: a: b.\n")


def test_bugs_keep_their_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        raised_by_fit(monkeypatch, ZeroDivisionError())


def raised_by_fit(monkeypatch, error):
    def fit(*_, **__):
        raise error

    monkeypatch.setattr("modicum.fit.fit", fit)
    result = run("fit", "demo", "--bpw", "4")
    assert result.stdout == ""
    return result.exit_code, result.stderr


# Whole runs


def test_fit_writes_and_tells_what_it_made(written):
    out, result = written
    receipt = json.loads((out / "receipt.json").read_text())
    lines = dict(line.split(":", 1) for line in result.stdout.splitlines())
    assert f"({receipt['bytes']['actual']} bytes, {receipt['bytes']['bits_per_weight']:.3f} bpw)" in lines["size"]
    assert f"→ {receipt['quality']['perplexity']:.3f}" in lines["perplexity"]
    assert f"{receipt['quality']['mean']:.5f} (95 % interval" in lines["mean KL per token"]
    assert lines["report"].strip() == str(out / "report.html")
    assert f"{receipt['bytes']['actual']:,} bytes" in (out / "report.html").read_text()
    assert result.stderr == ""


def test_eval_repeats_the_quality_of_the_receipt(written, model):
    out, _ = written
    found = json.loads(run("eval", out, "--reference", model, "--tokens", "16", "--json").stdout)
    receipt = json.loads((out / "receipt.json").read_text())
    assert found["data"]["hash"] == receipt["data"]["hashes"]["test"]
    assert found["quality"].pop("metric") == receipt["quality"].pop("metric")
    assert found["quality"] == pytest.approx(receipt["quality"], rel=1e-3)
    assert "judged on:" in run("eval", out, "--tokens", "16", "--samples", "2").stdout


def test_export_carries_the_plan_to_another_target(written, tmp_path):
    before = json.loads((written[0] / "receipt.json").read_text())
    before["request"] |= {"samples": 4, "tokens": 16}
    shutil.copytree(written[0], tmp_path / "one")
    (tmp_path / "one" / "receipt.json").write_text(json.dumps(before))
    result = run("export", tmp_path / "one", "--target", "modicum", "--out", tmp_path / "other", "--json")
    assert result.exit_code == 0, result.stderr
    after = json.loads(result.stdout)
    assert after["request"]["target"] == "modicum"
    assert after["coverage"]["treated_bytes"] == before["coverage"]["treated_bytes"] > 0
    assert after["bytes"]["actual"] == pytest.approx(before["bytes"]["actual"], rel=0.02)
    assert after["data"]["hashes"] == before["data"]["hashes"] and "differ" not in result.stderr


def test_export_of_a_run_on_batches_from_python_is_refused(written, tmp_path):
    receipt = json.loads((written[0] / "receipt.json").read_text())
    receipt["data"]["source"] = "batches"
    shutil.copytree(written[0], tmp_path / "one")
    (tmp_path / "one" / "receipt.json").write_text(json.dumps(receipt))
    assert "were batches from Python" in refused("export", tmp_path / "one", "--target", "modicum", "--out", tmp_path / "other")


def test_dry_run_tells_what_is_within_reach_and_writes_nothing(model, tmp_path):
    words = ("fit", model, "--bpw", "1", *SMALL, "--out", tmp_path / "none", "--dry-run")
    text, value = run(*words).stdout, json.loads(run(*words, "--json").stdout)
    assert value["format"] == "modicum-forecast" and value["fits"] is False
    assert f"({value['smallest_bpw']:.3f} bpw) to" in text and "cannot be met" in text
    assert "fused" in text and "target: tied" in text
    assert list(tmp_path.iterdir()) == []


def test_out_is_named_after_the_model_and_every_setting_arrives(monkeypatch, model):
    got = {}

    def fit(source, **settings):
        got.update(settings, source=source)
        raise ModelError("fit: stops here.")

    monkeypatch.setattr("modicum.fit.fit", fit)
    run("fit", model, "--bpw", "4.5", "--keep", "head", "--keep", "layers.0", "--ram", "4GB", "--overwrite")
    assert got["source"] == str(model) and got["out"].parts == ("out", "twin")
    assert got["bpw"] == 4.5 and got["keep"] == ("head", "layers.0") and got["ram"] == "4GB" and got["overwrite"] is True
    assert {field.name for field in dataclasses.fields(Request)} - got.keys() == {"budget", "test_samples", "gradient_samples"}


# Progress


def test_other_bars_are_hushed_for_as_long_as_ours_are_drawn(capsys):
    class Download(tqdm):
        pass

    before = tqdm.__init__, logging.get_verbosity(), logging.is_progress_bar_enabled()
    with show.hushed():
        list(tqdm([1], desc="loud", disable=False))
        list(logging.tqdm([1], desc="loud"))
        list(Download([1], desc="download"))
    assert "loud" not in (seen := capsys.readouterr().err) and "download" in seen
    assert (tqdm.__init__, logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize("visible", [True, False])
def test_progress_is_drawn_only_where_someone_watches(monkeypatch, visible):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with show.Bar(visible=visible) as bar:
        bar.step()
        for stage in ("measure", "assemble"):
            bar.start(stage, 3)
            bar.step()
    assert ("assemble" in terminal.text) is visible
