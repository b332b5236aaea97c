import dataclasses
import errno
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers.utils import logging

import modicum
from modicum import __version__
from modicum.allocate import ALLOCATORS
from modicum.cli import early, show
from modicum.cli import main as commands
from modicum.cli.main import fit as fit_command
from modicum.cli.main import frontier as frontier_command
from modicum.cli.main import main
from modicum.cli.main import measure as measure_command
from modicum.core.errors import ModelError
from modicum.core.method import registry
from modicum.fit import choosing
from modicum.fit.request import Request
from modicum.measure.settings import Settings
from modicum.models.located import DEMO
from modicum.models.quiet import hushed
from modicum.receipt import frontier, report
from modicum.table.harm import HARMS
from modicum.testing import zoo

SMALL = ("--samples", "4", "--tokens", "16", "--menu", "nearest bits=4,nearest bits=8", "--harm", "error")


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
    words = [sys.executable, "-m", "modicum", "fit", str(model), "--bpw", "9", *SMALL, "--search-time", "0", "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """A directory that ``measure`` wrote through the command line, and what was printed."""
    out = tmp_path_factory.mktemp("measured") / "m m"
    words = (
        "measure",
        model,
        "--out",
        out,
        "--samples",
        "4",
        "--tokens",
        "16",
        "--test-samples",
        "4",
        "--menu",
        "nearest bits=4,nearest bits=8,ziplm keep=0.5",
    )
    result = run(*words, "--harm", "error")
    assert result.exit_code == 0, result.stderr
    return out, result


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


@pytest.mark.parametrize("words", [("--help",), ("fit", "--help"), ("measure", "-h"), ("frontier", "-h"), ("eval", "-h"), ("--version",)])
def test_help_answers(words):
    """Before anything heavy is imported, as the tests of the start hold."""
    done = run(*words)
    assert done.exit_code == 0 and ("Usage:" in done.stdout or __version__ in done.stdout)


def test_help_says_what_exit_codes_mean(monkeypatch):
    said = " ".join(run("--help").stdout.split())
    assert "0 done, 2 refused in one sentence on stderr, 130 interrupted, 1 a fault of modicum's own" in said
    assert (run("--help").exit_code, run("explain", "gpt").exit_code) == (0, 2)
    for error, code in ((KeyboardInterrupt(), 130), (RuntimeError("a bug"), 1)):
        monkeypatch.setattr("modicum.core.method.named", mock.Mock(side_effect=error))
        assert CliRunner().invoke(main, ["explain", "gptq"]).exit_code == code


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "modicum", "fit", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("Usage: modicum fit [OPTIONS] [MODEL]")


@pytest.mark.parametrize("command, settings", [(fit_command, Request), (measure_command, Settings)])
def test_defaults_shown_are_those_of_the_library(command, settings):
    known = {field.name: field.default for field in dataclasses.fields(settings)}
    stated = {option.name: option.default for option in command.params if getattr(option, "show_default", False)}
    assert {"samples", "tokens", "micro_batch", "test_samples", "gradient_samples", "seed", "device", "harm"} <= stated.keys()
    assert known["group"] is None and "group" not in stated  # what suits each layer: no number to show
    assert stated == {name: known[name] for name in stated}


def test_defaults_of_frontier_are_those_of_the_library():
    known = {name: parameter.default for name, parameter in inspect.signature(frontier).parameters.items()}
    stated = {option.name: option.default for option in frontier_command.params if getattr(option, "show_default", False)}
    assert stated == {"points": known["points"], "measured_at": known["measured_at"]}


@pytest.mark.parametrize("flag, registered", [("allocator", ALLOCATORS), ("harm", HARMS)])
def test_help_names_all_there_are(flag, registered):
    (said,) = (option.help for option in fit_command.params if option.name == flag)
    assert set(said.partition(": ")[2].rstrip(".").replace(" or ", ", ").split(", ")) == set(registered)


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
        (("fit", "{model}", "--bpw", "4", "--method", "gptq"), "exactly one of a budget, a method or a plan must be given, got budget and"),
        (("fit", "{model}", "--size", "4 apples"), "must be a size such as 4.5MB"),
        (("fit", "{model}", "--bpw", "4", "--target", "transformer"), "Did you mean transformers?"),
        (("fit", "{model}", "--bpw", "4", "--menu", "gptk"), "is not known"),
        (("fit", "{model}", "--bpw", "4", "--harm", "none"), "harm 'none': is not known"),
        (("fit", "{model}", "--bpw", "4", "--allocator", "hawk"), "Did you mean hawq"),
        (("fit", "{model}", "--params", "sixty"), "must be a share such as 60%"),
        (("fit", "{model}", "--loss", "-1%"), "must be a share"),
        (("fit", "{model}", "--memory", "4"), "must be a size such as 4.5MB"),
        (("fit", "{model}", "--speed", "fast"), "must be a factor such as 1.5x"),
        (("fit", "{model}", "--latency", "20"), "must be a time such as 20ms"),
        (("fit", "{model}", "--bpw", "4", "--workers", "many"), "must be a number of processes or ray"),
        (("fit", "{model}", "--bpw", "4", "--search-time", "-1"), "search_time: must be at least 0, got -1.0."),
        (("fit", "{model}", "--memory", "1GB", "--context", "0"), "context: must be at least 1"),
        (("fit", "--from", "{model}", "--bpw", "4"), "must be a folder that measure wrote"),
        (("fit", "--from", "nowhere", "--bpw", "4"), "must be a folder that measure wrote"),
        (("measure", "nowhere", "--out", "{model}/x"), "no such directory"),
        (("measure", "{model}", "--out", "{model}", "--json"), "must not be what is read"),
        (("measure", "{model}", "--out", "{model}/x", "--harm", "fischer"), "Did you mean fisher?"),
        (("frontier", "{model}", "--json"), "must be a folder that measure wrote"),
        (("fit", "{model}", "--plan", "{model}/config.json"), "must be an object of format modicum-plan"),
        (("fit", "{model}", "--bpw", "4", "--data", "{model}/nothing.txt", "--tokens", "16", "--json"), "none is there"),
        (("fit", "{model}", "--bpw", "1", "--samples", "4", "--tokens", "16", "--out", "{model}.x", "--json"), "cannot be reached"),
        (("fit", "{model}", "--bpw", "9", "--out", "{model}"), "must not be what is read"),
        (("fit", "{model}", "--bpw", "9", "--out", "{model}/x"), "must not lie in the folder that is read"),
        (("eval", "{model}", "--tokens", "0"), "at least 1"),
        (("eval", "nowhere", "--json"), "no such directory"),
        (("export", "{model}", "--target", "modicum", "--out", "x"), "must be a readable JSON file"),
    ],
)
def test_bad_input_is_told_in_one_sentence(model, words, said):
    assert said in refused(*(word.replace("{model}", str(model)) for word in words))
    assert not (model / "x").exists()


WRONG = ["fit", "fit --bpw 4", "fit demo --samples four", "frobnicate", "export demo", "measure demo", "frontier"]


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage_exits_with_two(words):
    result = run(*words.split())
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
    lines = dict(line.split(":", 1) for line in result.stdout.splitlines() if ":" in line)
    assert f"({receipt['bytes']['actual']} bytes, {receipt['bytes']['bits_per_weight']:.3f} bpw)" in lines["size"]
    assert f"→ {receipt['quality']['perplexity']:.3f}" in lines["perplexity"]
    assert f"{receipt['quality']['mean']:.5f} (95 % interval" in lines["mean KL per token"]
    assert lines["report"].strip() == str(out / "report.html")
    assert f"{receipt['bytes']['actual']:,} bytes" in (out / "report.html").read_text()
    told = [line.partition("] ")[2].split(",")[0] for line in result.stderr.splitlines()]
    assert told == [
        "measuring every option on every layer", "choosing", f"chosen: {receipt['bytes']['actual'] / 1e6:.3f} MB", "compressing", "writing",
        "reloading and comparing", "judging on test data",
    ]  # fmt: skip


def test_eval_repeats_the_quality_of_the_receipt(written, model):
    out, _ = written
    result = run("eval", out, "--reference", model, "--tokens", "16", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    receipt = json.loads((out / "receipt.json").read_text())
    assert found["data"]["hash"] == receipt["data"]["hashes"]["test"]
    assert found["quality"].pop("metric") == receipt["quality"].pop("metric")
    (ours,), (theirs,) = (each["quality"].pop("outputs") for each in (found, receipt))
    assert ours["judged"] == theirs["judged"] == "logits: classes on the last axis"
    assert found["quality"].pop("worst output") == receipt["quality"].pop("worst output") == "logits"
    assert found["quality"].pop("each") == pytest.approx(receipt["quality"].pop("each"), rel=1e-3)
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


def settings_of(monkeypatch, command, *words):
    """What a command hands to the library."""
    got = {}

    def stop(*sources, **settings):
        got.update(settings, sources=sources)
        raise ModelError("it: stops here.")

    monkeypatch.setattr(command, stop)
    for owner, check in ((early, "check_fit"), (early, "check_measure"), (commands, "require_measurement")):
        monkeypatch.setattr(owner, check, lambda *_: None)  # not all of what is handed over is there
    assert run(*words).stderr == "modicum: it: stops here.\n"
    got.pop("progress")
    got.pop("ranks", None)
    assert got.pop("page", report) is report
    return got


EVERY = {
    "output": "logits",
    "classes": "-1",
    "text_column": "said",
    **{"target": "modicum", "data": "a.txt", "samples": 5, "tokens": 6, "micro_batch": 7, "test_samples": 9, "gradient_samples": 4},
    **{"menu": "int4", "group": 32, "ram": "4GB", "seed": 3, "device": "cpu", "keep": ("head", "layers.0"), "harm": "trace"},
    "set": ("lm_head: bits=8", "*down_proj: group=32"),
    "compute": "float32",
    **{"curvature": True, "overwrite": True, "allow_pickle": True, "trust_remote_code": True, "allow_fallback": True},
    "allow_quantized_source": True,
    "search_time": 1.5,
    **{
        "activations": "int8",
        "activation_scale": "static",
        "rotate": "random",
        "importance": "attention",
        "starved": "sent",
        "smooth": 0.5,
    },
}
BUDGETS = {"size": "1MB", "bpw": "4.5", "params": "60%", "loss": "1%", "memory": "2GiB", "speed": "1.5x", "latency": "20ms"}
FITTING = {
    "context": 4096,
    "batch": 2,
    "allocator": "hawq",
    "workers": "2",
    "allow_broken": True,
    "uniform": True,
    "kv": "fp8",
    "dry_run": True,
    "heal": 3,
    "heal_with": "norms",
    "heal_rate": 0.5,
    "heal_batch": 2,
    "rounds": 2,
    "retune": True,
}


def as_words(settings):
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        for item in value if isinstance(value, tuple) else (value,):
            yield from [flag] if item is True else [flag, item]


def test_out_is_named_after_the_model_and_every_setting_arrives(monkeypatch, model):
    wanted = {**EVERY, **BUDGETS, **FITTING, "method": "gptq", "plan": "plan.json"}
    got = settings_of(monkeypatch, "modicum.fit.fit", "fit", model, *as_words(wanted))
    assert got.pop("sources") == (str(model),) and got.pop("out").parts == ("out", "twin")
    assert got == wanted
    assert {field.name for field in dataclasses.fields(Request)} - got.keys() == {"budget", "out"}


def test_every_setting_of_a_measurement_arrives(monkeypatch, tmp_path):
    got = settings_of(monkeypatch, "modicum.measure.measure", "measure", "demo", "--out", tmp_path / "m", *as_words(EVERY))
    assert got == EVERY | {"sources": ("demo",), "out": tmp_path / "m"}
    assert {field.name for field in dataclasses.fields(Settings)} == got.keys() - {"sources"}


def test_what_is_not_said_is_left_to_the_library(monkeypatch, measured):
    """Above all the time to search, which is another after a measurement."""
    assert settings_of(monkeypatch, "modicum.fit.fit", "fit", "demo", "--bpw", "4").keys() == {"sources", "out", "bpw"}
    got = settings_of(monkeypatch, "modicum.fit.fit", "fit", "--from", measured[0], "--bpw", "4")
    assert got == {"sources": (None,), "out": Path("out") / "twin", "bpw": "4", "measured": str(measured[0])}
    assert settings_of(monkeypatch, "modicum.receipt.frontier", "frontier", "m") == {"sources": ("m",)}


# Measured once


def lines(result):
    return {name: value.strip() for name, _, value in (line.partition(":") for line in result.stdout.splitlines())}


def test_measure_tells_what_it_found_and_what_to_do_next(measured):
    out, result = measured
    said = lines(result)
    assert said["targets"] == "transformers, modicum" and said["measurement"] == str(out)
    assert said["next"].startswith(f"modicum frontier '{out}', modicum fit --from '{out}' --size 4.07MB")
    assert "random plans with Spearman r = " in said["prediction"]
    assert [line.split()[-2:] for line in result.stdout.splitlines()[1:3]] == [["22", "108"], ["6", "9"]]
    assert {path.name for path in out.iterdir()} == {
        "measurement.json",
        "findings.json",
        "sequences.safetensors",
        "run.yaml",
        ".modicum-files.json",
    }


def test_frontier_of_a_measurement(measured, tmp_path):
    shutil.copytree(measured[0], tmp_path / "m")
    result = run("frontier", tmp_path / "m", "--target", "modicum", "--points", "3", "--measured", "1")
    assert result.exit_code == 0, result.stderr
    said = lines(result)
    assert said["picture"] == str(tmp_path / "m" / "frontier.svg") and Path(said["page"]).exists()
    found = json.loads((tmp_path / "m" / "frontier.json").read_text())
    point = found["curves"][0]["points"][0]["chosen"]
    row = next(line for line in result.stdout.splitlines() if f" {point['measured']['mean']:.3g} " in line)
    assert row.split()[-1] == str(len(point["cuts"])) == "6"
    again = run("frontier", tmp_path / "m", "--target", "modicum", "--points", "3", "--measured", "1", "--json")
    assert json.loads(again.stdout) == found


def test_fit_from_a_measurement_measures_nothing_again(measured, tmp_path):
    words = ("fit", "--from", measured[0], "--bpw", "3.5", "--target", "modicum", "--allocator", "integer_program", "--out", tmp_path / "x")
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    said, receipt = lines(result), json.loads((tmp_path / "x" / "receipt.json").read_text())
    assert said["budget"] == "3.5 bpw" and said["choice"].startswith("integer_program, ")
    assert said["prediction"] == lines(measured[1])["prediction"]
    cuts = [site for site in receipt["sites"] if site["kind"] == "cut"]
    assert said["cuts"] == f"ziplm keep=0.5 on {len(cuts)}" and cuts
    assert not {"measure", "gradients", "scale"} & receipt["stages"].keys()
    assert receipt["bytes"]["actual"] <= receipt["bytes"]["allowed"]


@pytest.mark.parametrize(
    "words, said",
    [
        (("--size", "10kB"), "the smallest for target transformers and this menu is 1.569 MB"),
        (("--bpw", "0.1"), "(6.17 bpw)"),
        (("--params", "1%"), "the smallest for target transformers and this menu is 56.5 % of the values"),
        (("--params", "1%", "--target", "modicum"), "the smallest for target modicum"),
        (("--memory", "1MB"), "Only cuts and dropped blocks help: transformers holds weights whole in memory"),
        (("--speed", "100x", "--context", "16"), "100x speed: cannot be reached, the smallest for target transformers and this menu is"),
        (("--latency", "1us", "--context", "16"), "Only cuts and dropped blocks help"),
        (("--size", "3MB", "--params", "1%"), "budget 3.000 MB and 1 % of parameters: cannot be reached"),
        (("--bpw", "9", "--samples", "5"), "samples: was 4 when"),
        (("--bpw", "9", "--menu", "int3"), "'gptq bits=3' was not measured"),
        (("demo", "--bpw", "9"), "demo: must be the model that was measured"),
    ],
)
def test_what_a_measurement_cannot_give_is_told_in_one_sentence(measured, tmp_path, monkeypatch, words, said):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where times are kept
    assert said in refused("fit", "--from", measured[0], *words, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_frontier_refuses_a_target_that_was_not_measured(measured):
    assert "was not measured in" in refused("frontier", measured[0], "--target", "gguf")


@pytest.mark.parametrize("name", ["measurement.json", "findings.json", "sequences.safetensors"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
    ],
)
def test_a_damaged_measurement_is_told_in_one_sentence(measured, tmp_path, name, spoil):
    spoil(Path(shutil.copytree(measured[0], tmp_path / "m")) / name)
    assert str(tmp_path / "m") in refused("fit", "--from", tmp_path / "m", "--bpw", "9", "--out", tmp_path / "x")
    assert str(tmp_path / "m") in refused("frontier", tmp_path / "m")


def test_fit_from_a_measurement_chooses_in_seconds_unless_asked_to_search(measured, tmp_path, capfd, monkeypatch):
    """From Python as well, and without other libraries' bars."""
    monkeypatch.setattr(choosing, "too_slow", lambda *_: "")  # however busy the machine is
    receipt = modicum.fit(measured=measured[0], bpw=9, out=tmp_path / "x").receipt
    assert receipt["search"]["allocator"] == "integer_program" and "evaluations" not in receipt["search"]
    receipt = modicum.fit(measured=measured[0], bpw=9, out=tmp_path / "y", search_time=1).receipt
    assert receipt["search"]["allocator"] == "auto" and receipt["search"]["evaluations"] > 1
    assert 0 < receipt["search"]["end"] <= receipt["search"]["start"] * (1 + 1e-9)
    assert capfd.readouterr().err == ""


def test_another_target_and_a_model_that_changed_since_are_refused(model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    words = (
        "--samples",
        "4",
        "--tokens",
        "16",
        "--test-samples",
        "4",
        "--menu",
        "nearest bits=8",
        "--harm",
        "error",
        "--target",
        "transformers",
    )
    assert run("measure", tmp_path / "model", "--out", tmp_path / "m", *words).exit_code == 0
    assert "target modicum: was not measured" in refused("fit", "--from", tmp_path / "m", "--bpw", "9", "--target", "modicum", "--dry-run")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    for command in (("fit", "--from", tmp_path / "m", "--bpw", "9", "--out", tmp_path / "x"), ("frontier", tmp_path / "m")):
        assert "must be the model that was measured, is not or has changed" in refused(*command)


def test_interrupted_measurements_continue(monkeypatch):
    def measure(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("modicum.measure.measure", measure)
    result = run("measure", "demo", "--out", "m")
    assert (result.exit_code, result.stderr) == (130, "modicum: interrupted. The same command continues from what is done.\n")


def test_outcome_tells_how_the_plan_was_searched(written, capsys):
    receipt = json.loads((written[0] / "receipt.json").read_text())
    rank = {"plans": 30, "sequences": 8, "spearman": None}
    receipt["search"] = {"allocator": "auto", "seconds": 41.25, "evaluations": 120, "hits": 15, "rank": rank, "start": 0.5, "end": 0.25}
    gone = {**receipt["sites"][0], "option": "dropped"}
    receipt["sites"] += [gone, gone, {**gone, "kind": "span", "option": "blocks count=1 first=1"}]
    show.outcome(receipt, written[0])
    said = capsys.readouterr().out
    assert (
        "auto, 120 candidates judged and 15 answered from memory, 41.2 s, mean divergence 0.50000 → 0.25000 on validation" in said
        and "Spearman" not in said
    )
    assert "blocks count=1 first=1, 2 choices with them" in said
    show.outcome(receipt | {"search": {"skipped": "too slow"}}, written[0])
    assert "left out: too slow" in capsys.readouterr().out


@pytest.mark.parametrize(
    "told, said",
    [
        (
            {"taken": False, "lost": 0.5, "chosen": 0.25, "sequences": 16},
            "gptq bits=2 everywhere loses 0.5 on 16 validation sequences, the choice 0.25",
        ),
        (
            {"taken": True, "lost": 0.25, "chosen": 0.5, "sequences": 0},
            "gptq bits=2 everywhere loses 0.25 by the forecast, the choice 0.5: it is taken",
        ),
        ({"taken": True, "rise": 0.01, "sequences": 4}, "gptq bits=2 everywhere keeps the loss in fewer bytes and is taken"),
    ],
)
def test_outcome_tells_how_the_choice_compares_with_one_option_everywhere(written, capsys, told, said):
    receipt = json.loads((written[0] / "receipt.json").read_text()) | {"search": {"plain": {"option": "gptq bits=2", **told}}}
    show.outcome(receipt | {"verdict": "a large loss (0.5 nats per token)."}, written[0])
    shown = " ".join(capsys.readouterr().out.split())
    assert said in shown and "a large loss (0.5 nats per token)." in shown


# Progress


def test_other_bars_are_hushed_for_as_long_as_ours_are_drawn(capsys):
    class Download(tqdm):
        pass

    before = tqdm.__init__, logging.get_verbosity(), logging.is_progress_bar_enabled()
    with hushed():
        list(tqdm([1], desc="loud", disable=False))
        list(logging.tqdm([1], desc="loud"))
        list(Download([1], desc="download"))
    assert "loud" not in (seen := capsys.readouterr().err) and "download" in seen
    assert (tqdm.__init__, logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_trim_writes_a_smaller_vocabulary_and_says_so(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("def add(one, two):\n    return one + two\n" * 50)
    result = CliRunner().invoke(main, ["trim", "demo", "--to", str(corpus), "--out", str(tmp_path / "small"), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["kept"] < told["before"] == 1024 and told["saved"] > 0 and told["changed"] == 0
    result = CliRunner().invoke(main, ["trim", "demo", "--to", str(corpus), "--out", str(tmp_path / "small")])
    assert result.exit_code == 2 and "exists already" in result.stderr
