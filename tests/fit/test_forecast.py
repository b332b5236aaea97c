"""A dry run: from config, headers and a sample of the data alone, whatever is asked for."""

import json
import shutil
import time

import pytest
from click.testing import CliRunner

import modicum
from modicum.cli.main import main
from modicum.core.errors import DataError, SettingError
from modicum.core.plan import Plan
from modicum.models.located import DEMO
from modicum.models.quiet import hushed
from modicum.models.weights import CheckpointWeights
from modicum.testing import zoo


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "twin"
    module = zoo.tied_twin()[0]
    module.config.max_position_embeddings = 1_000_000
    with hushed():
        module.save_pretrained(path)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


def forecast(*words):
    result = CliRunner().invoke(main, ["fit", *map(str, words), "--dry-run", "--json", "--quiet"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("tokens, samples", [(16, 4), (100_000, 4), (512, 10_000_000)])
def test_no_weight_is_read_and_nothing_run_whatever_is_asked_for(model, monkeypatch, tokens, samples):
    read = CheckpointWeights._value

    def watched(self, first):
        assert self.shards.directory != model, f"{first} was read"
        return read(self, first)

    monkeypatch.setattr(CheckpointWeights, "_value", watched)
    monkeypatch.setattr("modicum.measure.settling.rehearse", lambda *_, **__: pytest.fail("a rehearsal was run"))
    found = forecast(model, "--bpw", "9", "--tokens", tokens, "--samples", samples, "--target", "modicum")  # whose forms need no trial
    assert found["fits"] is True and found["smallest_bytes"] < found["largest_bytes"]
    assert found["calibration_tokens"] == min(tokens * samples, found["data"]["taken"]["tokens"])
    assert found["seconds"] > found["search_seconds"] == 60 and found["memory_bytes"] > found["activation_bytes"] > 0


def test_what_is_within_reach_is_what_a_run_finds(model, tmp_path):
    found = forecast(model, "--bpw", "9", "--tokens", "16", "--samples", "4", "--menu", "nearest bits=4")
    settings = {"tokens": 16, "samples": 4, "menu": "nearest bits=4", "harm": "error", "search_time": 0, "test_samples": 4}
    receipt = modicum.fit(model, size=found["smallest_bytes"], out=tmp_path / "out", **settings).receipt
    assert receipt["bytes"]["actual"] <= found["smallest_bytes"] < 1.01 * receipt["bytes"]["actual"]
    assert {site["name"] for site in found["sites"]} == {site["site"] for site in receipt["sites"] if site["kind"] != "cut"}


@pytest.mark.parametrize("dry", [True, False])
def test_windows_longer_than_the_positions_are_refused_at_once(dry):
    begun = time.process_time()
    with pytest.raises(SettingError, match=r"at most the 512 that demo has positions for, 10000000 came\. Pass --tokens 512"):
        modicum.fit("demo", bpw=4, tokens=10_000_000, dry_run=dry)
    assert time.process_time() - begun < 10


def test_windows_longer_than_the_text_are_refused_at_once(model, tmp_path):
    (tmp_path / "a.txt").write_text("a few words and no more\n" * 10)
    with pytest.raises(
        DataError, match=r"a\.txt must give each of three parts a window of 900000 tokens, 2700000 in all; about \d+ were found"
    ):
        modicum.fit(model, bpw=4, tokens=900_000, data=tmp_path / "a.txt", dry_run=True)
    with pytest.raises(DataError, match="the text shipped with modicum must give each of three parts"):
        modicum.fit(model, bpw=4, tokens=900_000, dry_run=True)


def test_a_large_text_is_only_sampled(model, tmp_path, monkeypatch):
    monkeypatch.setattr("modicum.data.extent._READ", 10_000)
    (tmp_path / "a.csv").write_text("id,review\n" + "1,a few words and no more\n" * 5000)
    taken = forecast(model, "--bpw", "9", "--tokens", "16", "--data", tmp_path / "a.csv")["data"]["taken"]
    assert taken["at_least"] is True and taken["columns"] == ["review"] and taken["documents"] < 500


def test_time_is_not_promised_where_nothing_has_run(model):
    found = forecast(model, "--latency", "20ms", "--context", "64")
    assert found["fits"] is None and "a dry run leaves out" in found["why"]
    said = CliRunner().invoke(main, ["fit", str(model), "--latency", "20ms", "--context", "64", "--dry-run", "--quiet"]).stdout
    assert "not checked: time is only known once" in said


def test_a_measurement_is_forecast_without_choosing(model, tmp_path, monkeypatch):
    settings = {"tokens": 16, "samples": 4, "menu": "nearest bits=4,nearest bits=8", "harm": "error", "search_time": 0, "test_samples": 4}
    modicum.measure(model, out=tmp_path / "m", **settings)
    monkeypatch.setattr("modicum.fit.choose.Chooser.choose", lambda *_, **__: pytest.fail("a choice was made"))
    monkeypatch.setattr("modicum.measure.settling.rehearse", lambda *_, **__: pytest.fail("a rehearsal was run"))
    found = forecast("--from", tmp_path / "m", "--bpw", "9", "--target", "modicum")
    assert found["fits"] is True and found["measured"] is True and found["calibration_tokens"] == 64


def test_of_a_method_or_a_plan_it_says_what_that_does(model, tmp_path):
    words = ("--tokens", "16", "--samples", "4", "--target", "modicum")
    found = forecast(model, "--method", "nearest bits=4", *words)
    options = {option for site in found["sites"] for option in site["options"]}
    assert options == {"keep", "nearest bits=4"} and found["smallest_bytes"] < 0.4 * found["original_bytes"]
    name = next(site["name"] for site in found["sites"] if "up_proj" in site["name"])
    Plan("modicum", {name: "nearest bits=3"}).write(tmp_path / "plan.json")
    found = forecast(model, "--plan", tmp_path / "plan.json", *words)
    made = modicum.fit(str(model), plan=tmp_path / "plan.json", tokens=16, samples=4, test_samples=4, out=tmp_path / "out").receipt
    assert made["bytes"]["actual"] <= found["smallest_bytes"] == found["largest_bytes"] < 1.001 * made["bytes"]["actual"]
    planned = {site["name"]: site["options"] for site in found["sites"]}
    assert planned.pop(name) == ["nearest bits=3"] and all(options == ["keep"] for options in planned.values())


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry"])
@pytest.mark.parametrize("words, told", [
    (("--method", "kmeans bits=2", "--target", "gguf"), "target gguf can hold it on no layer of this model, whose files hold types of llama.cpp"),
    (("--bpw", "3", "--activations", "int8", "--target", "gguf"), "target gguf rounds no inputs of this model"),
])  # fmt: skip
def test_what_a_target_cannot_hold_is_refused_before_any_work(model, tmp_path, words, told, dry):
    said = ("--tokens", "16", "--samples", "4", "--out", str(tmp_path / "out"), "--quiet")
    result = CliRunner().invoke(main, ["fit", str(model), *words, *said, *dry], catch_exceptions=False)
    assert result.exit_code == 2 and told in result.stderr and not (tmp_path / "out").exists()
