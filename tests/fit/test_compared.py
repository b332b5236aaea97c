"""Results side by side: what differs, and whether quality does beyond chance."""

import copy
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import modicum
from modicum.cli.main import main
from modicum.core.errors import SettingError
from modicum.fit.compared import compare
from modicum.testing.tiny import build


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The same tiny model at 3 and at 8 bits, one layer kept in the second, in folders of their own."""
    folder = tmp_path_factory.mktemp("compared")
    chance, module = torch.Generator().manual_seed(0), build("LlamaForCausalLM")
    batches = [{"input_ids": torch.randint(3, 64, (2, 16), generator=chance)} for _ in range(24)]
    given = {"data": batches, "target": "modicum"}
    modicum.fit(module, method="nearest bits=3 group=16", out=folder / "small", **given)
    modicum.fit(module, method="nearest bits=8 group=16", keep=["*down_proj*"], out=folder / "large", **given)
    return folder


def changed(results, name, change):
    """Another result: the small one with its receipt changed."""
    body = copy.deepcopy(json.loads((results / "small" / "receipt.json").read_text()))
    change(body)
    (results / name).mkdir(exist_ok=True)
    (results / name / "receipt.json").write_text(json.dumps(body))
    return results / name


def test_what_differs_is_told_and_what_does_not_is_not(results):
    found = compare([results / "small", results / "large"])
    small, large = found["results"]
    receipts = [json.loads((results / name / "receipt.json").read_text()) for name in ("small", "large")]
    for result, receipt in zip((small, large), receipts):
        assert result["bytes"] == receipt["bytes"]["actual"] == sum(result["kinds"].values())
    assert small["kinds"]["nearest bits=3"] < large["kinds"]["nearest bits=8"]
    options = {row["site"]: row["options"] for row in found["sites"]}
    assert options["model.layers.0.mlp.down_proj"] == ["nearest bits=3 group=16", "keep"]
    assert options["model.layers.0.mlp.up_proj"] == ["nearest bits=3 group=16", "nearest bits=8 group=16"]
    assert set(found["settings"]) == {"method", "keep"} and found["versions"] == {}
    same = compare([results / "small", results / "small"])
    assert not same["sites"] and not same["settings"] and same["quality"][0]["difference"] == 0 and not same["quality"][0]["differs"]


def test_a_difference_in_quality_is_of_pairs_and_beyond_chance_or_not(results):
    (row,) = compare([results / "large", results / "small"])["quality"]
    each = [json.loads((results / name / "receipt.json").read_text())["quality"]["each"] for name in ("large", "small")]
    assert row["paired"] and row["differs"] and np.isclose(row["difference"], np.mean(each[1]) - np.mean(each[0]))
    assert row["low"] <= row["difference"] <= row["high"]

    def noise(body):
        values = body["quality"]["each"]
        body["quality"]["each"] = [value + (-1) ** place * 0.1 for place, value in enumerate(values)]

    (row,) = compare([results / "small", changed(results, "noise", noise)])["quality"]
    assert row["paired"] and not row["differs"]


def test_without_pairs_two_intervals_are_held_against_each_other_and_it_says_so(results):
    def elsewhere(body):
        body["data"]["hashes"]["test"] = "ab" * 32

    def earlier(body):
        del body["quality"]["each"]

    for change, same in ((elsewhere, False), (earlier, True)):
        (row,) = compare([results / "small", changed(results, "unpaired", change)])["quality"]
        assert not row["paired"] and row["same_sequences"] == same and not row["differs"]
        one = json.loads((results / "small" / "receipt.json").read_text())["quality"]
        assert np.isclose(row["high"], (one["high"] - one["low"]) / 2 * 2**0.5)
    (row,) = compare([results / "small", changed(results, "unjudged", lambda body: body.update(quality=None))])["quality"]
    assert row["why"] == "one of them was not judged"


def test_fused_layers_are_held_against_each_by_itself(results):
    def fuse(body):
        rows = [row for row in body["sites"] if "layers.0.mlp.gate_proj" in row["site"] or "layers.0.mlp.up_proj" in row["site"]]
        for row in rows:
            body["sites"].remove(row)
        body["sites"].append(rows[0] | {"site": "model.layers.0.mlp.[gate_proj,up_proj]", "kind": "fused"})

    assert compare([results / "small", changed(results, "fused", fuse)])["sites"] == []


def test_what_cannot_be_compared_is_refused_in_a_sentence(results, tmp_path):
    def other(body):
        body["model"] |= {"hash": "0" * 64, "name": "another"}

    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "measurement.json").write_text("{}")
    for given, said in [
        ([results / "small"], "at least two folders"),
        ([results / "small", tmp_path / "none"], "is none. Check the path"),
        ([results / "small", tmp_path / "measured"], "is one that measure wrote"),
        ([results / "small", tmp_path], "holds no receipt.json"),
        ([results / "small", changed(results, "other", other)], "must be of one original"),
        ([results / "small", changed(results, "spoilt", lambda body: body.update(sites=3))], "must be as fit writes them"),
    ]:
        with pytest.raises(SettingError, match=said):
            compare(given)
        done = CliRunner().invoke(main, ["compare", *map(str, given)])
        assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_the_command_prints_all_of_it(results):
    words = ["compare", str(results / "small"), str(results / "large")]
    text = CliRunner().invoke(main, words, catch_exceptions=False).stdout
    for part in ("beyond chance", "sequence by sequence", "nearest bits=3", "layers that differ", "settings that differ", "*down_proj*"):
        assert part in text
    assert json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout) == compare(words[1:])
