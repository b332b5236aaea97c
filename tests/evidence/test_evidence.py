import ast
import importlib.util
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "evidence"
SCRIPTS = sorted(EVIDENCE.glob("s[0-9]*_*.py"))
RESULTS = json.loads((EVIDENCE / "results.json").read_text(encoding="utf-8"))


def load(name):
    spec = importlib.util.spec_from_file_location(f"evidence_{name}", EVIDENCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the module of a class
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def declared(script):
    """Keywords of a script's ``CLAIM = Claim(...)``, without running it; fails where one of them is computed."""
    calls = [
        node.value
        for node in ast.parse(script.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["CLAIM"]
    ]
    assert len(calls) == 1
    return {word.arg: word.value for word in calls[0].keywords}


def keywords(call):
    return {word.arg: ast.literal_eval(word.value) for word in call.keywords}


def result(script):
    name = script.stem.partition("_")[0].upper()
    (row,) = [row for row in RESULTS if row["id"] == name]
    return row


run, common = load("run"), load("common")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_declares_its_claim_as_data_and_the_result_is_of_that_claim(script):
    claim = declared(script)
    setting = json.loads(json.dumps(common.dataclasses.asdict(common.Setting(**keywords(claim.pop("setting"))))))
    claim = {name: ast.literal_eval(value) for name, value in claim.items()}

    assert set(claim) == {"id", "system", "claim", "metric", "margin"}
    assert {name: result(script)[name] for name in claim} == claim
    assert result(script)["setting"] == setting
    assert len(setting["seeds"]) >= 3


def test_every_script_has_one_result_and_every_result_a_script():
    assert [row["id"] for row in RESULTS] == [script.stem.partition("_")[0].upper() for script in SCRIPTS] == list(run.SCRIPTS)


@pytest.mark.parametrize("row", RESULTS, ids=lambda row: row["id"])
def test_a_result_has_its_fields_and_follows_from_its_own_numbers(row):
    assert {"id", "claim", "setting", "measured", "baseline", "holds", "seconds", "margin", "metric", "seeds"} <= set(row)
    for option in (row["measured"], row["baseline"], *row["others"]):
        assert all(len(option[key]) == len(row["seeds"]) for key in ("log_perplexity", "log_perplexity_original", "kl", "bytes"))
    assert row["measured"]["log_perplexity_original"] == row["baseline"]["log_perplexity_original"]
    if "gains" in row:
        assert row["difference"] == common.verdict(row["gains"], row["margin"])
        assert row["holds"] == (row["difference"]["clear"] and all(row["conditions"].values()))
    else:
        assert row["difference"] == common.judge(row["measured"], row["baseline"], row["margin"])
        assert row["holds"] == common.holds(row["measured"], row["baseline"], row["margin"], row["setting"]["extra_bytes"])


@pytest.mark.parametrize("row", [row for row in RESULTS if "gains" in row], ids=lambda row: row["id"])
def test_a_result_on_allocation_has_intervals_and_follows_from_its_own_numbers(row):
    method, baseline = row["measured"], row["baseline"]
    for option in (method, baseline, *row["others"]):
        assert all(low <= kl <= high for kl, (low, high) in zip(option["kl"], option["kl_interval"], strict=True))
    if row["metric"].startswith("mean KL"):
        assert row["gains"] == pytest.approx([b - a for a, b in zip(method["kl"], baseline["kl"], strict=True)])
        claimed = [other for other in row["others"] if other["option"] not in row["setting"]["beside"]]
        assert statistics.mean(baseline["kl"]) == min(statistics.mean(other["kl"]) for other in (baseline, *claimed))
    if "no more bytes than allowed" in row["conditions"]:
        allowed = [size * (1 + row["setting"]["extra_bytes"]) for size in baseline["bytes"]]
        assert row["conditions"]["no more bytes than allowed"] == all(size <= most for size, most in zip(method["bytes"], allowed))


@pytest.mark.parametrize("row", RESULTS, ids=lambda row: row["id"])
def test_what_does_not_hold_says_why(row):
    assert row["holds"] or re.search(r"\w+ \w+.*\.$", run.NOTES[row["id"]])


def test_the_page_says_what_the_results_say():
    assert (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8") == run.page(RESULTS)


def test_a_stale_page_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "PAGE", tmp_path / "evidence.md")
    assert run.check(RESULTS) == 1
    (tmp_path / "evidence.md").write_text(run.page(RESULTS), encoding="utf-8")
    assert run.check(RESULTS) == 0
    assert run.check([{**RESULTS[0], "holds": not RESULTS[0]["holds"]}, *RESULTS[1:]]) == 1
    assert capsys.readouterr().out.count("Run make evidence.") == 2


def test_an_unknown_id_is_refused_with_the_known_ones():
    done = subprocess.run([sys.executable, EVIDENCE / "run.py", "S999"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert f"no script for S999; there are {next(iter(run.SCRIPTS))}" in done.stderr


@pytest.fixture
def allocation(monkeypatch):
    monkeypatch.syspath_prepend(str(EVIDENCE))
    yield load("allocation")
    sys.modules.pop("common", None)


def test_a_front_dominates_the_steps_below_its_corner(allocation):
    front = [(0.2, -1.0), (0.5, -2.0)]

    assert allocation.hypervolume(front, (1.0, 0.0)) == pytest.approx(0.3 * 1 + 0.5 * 2)
    assert allocation.hypervolume([*front, (0.6, -1.5), (2.0, -9.0), (0.1, 0.5)], (1.0, 0.0)) == allocation.hypervolume(front, (1.0, 0.0))
    assert allocation.hypervolume([], (1.0, 0.0)) == 0


def test_a_claim_on_allocation_needs_its_conditions_too(allocation):
    setting = allocation.Setting(method="a", baselines=("b",), extra_bytes=0.01)
    claim = allocation.Claim(id="S000", system="", claim="", metric="", margin=2.0, setting=setting)
    judged = lambda divergence, size: [
        allocation.Outcome(np.array([divergence, divergence + shift]), 2.0, 1.9, size) for shift in (0.1, 0.2, 0.3)
    ]
    found = {"a": judged(0.1, 101), "b": judged(0.3, 100), "c": judged(0.2, 100)}

    holding = allocation.compared(claim, found, met=True)
    assert (holding["baseline"]["option"], holding["holds"]) == ("c", True)
    assert holding["gains"] == pytest.approx([0.1, 0.1, 0.1])
    assert not allocation.compared(claim, found, met=False)["holds"]
    assert not allocation.compared(claim, found | {"a": judged(0.1, 102)})["holds"]
    assert not allocation.compared(claim, found | {"a": judged(0.25, 100)})["holds"]


@pytest.mark.parametrize(
    ("values", "clear"),
    [([0.010, 0.011, 0.012], True), ([0.010, -0.010, 0.001], False), ([-0.010, -0.011, -0.012], False), ([0.0, 0.0], False)],
)
def test_a_difference_is_clear_above_the_margin_in_standard_errors(values, clear):
    assert common.verdict(values, 2.0)["clear"] is clear


def test_the_standard_error_is_that_of_the_mean():
    assert common.verdict([1.0, 2.0, 3.0, 4.0], 2.0)["standard_error"] == pytest.approx(0.6454972)


def test_more_bytes_than_allowed_do_not_hold():
    method, baseline = {"log_perplexity": [1.0, 1.01], "bytes": [101, 101]}, {"log_perplexity": [2.0, 2.0], "bytes": [100, 100]}

    assert common.holds(method, baseline, 2.0, extra_bytes=0.01)
    assert not common.holds(method, baseline, 2.0, extra_bytes=0.0)
