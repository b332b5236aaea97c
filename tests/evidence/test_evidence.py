import ast
import importlib
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
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(EVIDENCE))  # scripts import what they share by its bare name
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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_finds_what_it_imports(script):
    assert load(script.stem).CLAIM.id == script.stem.partition("_")[0].upper()


def test_every_script_has_one_result_and_every_result_a_script():
    assert [row["id"] for row in RESULTS] == [script.stem.partition("_")[0].upper() for script in SCRIPTS] == list(run.scripts())


@pytest.mark.parametrize("row", RESULTS, ids=lambda row: row["id"])
def test_a_result_has_its_fields_and_follows_from_its_own_numbers(row):
    assert {"id", "claim", "setting", "measured", "baseline", "holds", "seconds", "margin", "metric", "seeds"} <= set(row)
    own = "kl" not in row["measured"]  # it measures what is its own claim's
    for option in (row["measured"], row["baseline"], *row["others"]):
        assert len(option) > 1
        assert set(option) == set(row["measured"]) if own else {"log_perplexity", "kl", "bytes"} <= set(option)
        assert all(len(values) == len(row["seeds"]) for key, values in option.items() if key != "option")
    assert "gains" in row or not own
    if not own:
        assert row["measured"]["log_perplexity_original"] == row["baseline"]["log_perplexity_original"]
    if "gains" in row:
        assert row["difference"] == common.verdict(row["gains"], row["margin"])
        assert row["holds"] == (row["difference"]["clear"] and all(row["conditions"].values()))
    else:
        assert row["difference"] == common.judge(row["measured"], row["baseline"], row["margin"])
        assert row["holds"] == common.holds(row["measured"], row["baseline"], row["margin"], row["setting"]["extra_bytes"])


@pytest.mark.parametrize("row", [row for row in RESULTS if "gains" in row and "kl" in row["measured"]], ids=lambda row: row["id"])
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
    assert f"no script for S999; there are {next(iter(run.scripts()))}" in done.stderr


def test_the_page_adds_up_what_all_rows_take_and_that_is_hours_less_than_four():
    scenes = {name: seconds for row in RESULTS for name, seconds in row.get("scenes", {}).items()}
    seconds = sum(row["seconds"] for row in RESULTS) + sum(scenes.values())

    assert f"Together they take {seconds:,.0f} seconds of one processor" in run.page(RESULTS)
    assert seconds < 4 * 3600


@pytest.mark.parametrize("row", [row for row in RESULTS if not row["holds"]], ids=lambda row: row["id"])
def test_what_does_not_hold_says_what_could_have_been_seen(row):
    smallest = row["margin"] * row["difference"]["standard_error"]

    assert f"A mean difference of {smallest:.4f} would have been seen, nothing smaller." in run.section(row)


# Stands for the package: a fit notes that it ran, and the process ends where it is told to, as a machine that goes down would end it.
STOPPED = """
import os, random, signal, sys, types
from pathlib import Path
sys.path.insert(0, {evidence!r})
import common, kept
kept.STEPS = Path({steps!r})

def fit(model, method, seed, **settings):
    with open({steps!r} + ".log", "a") as log:
        log.write(f"{{method}} {{seed}}\\n")
    if [method, str(seed)] == sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGKILL)
    chance = random.Random(f"{{method}} {{seed}}")
    quality = {{"perplexity": 9 + chance.random(), "perplexity_original": 8.1, "mean": chance.random() / 3}}
    return types.SimpleNamespace(receipt={{"quality": quality, "bytes": {{"actual": 100}}}})

sys.modules["modicum"] = types.SimpleNamespace(fit=fit)
common.main(common.Claim(id="S301", system="", claim="", metric="", margin=2.0, setting=common.Setting(method="a", baselines=("b",))))
"""


def test_a_row_that_was_killed_goes_on_where_it_was_and_is_the_row_it_would_have_been(tmp_path):
    def ran(steps, *stop):
        script = STOPPED.format(evidence=str(EVIDENCE), steps=str(steps))
        return subprocess.run([sys.executable, "-c", script, *stop], capture_output=True, text=True, check=False)

    killed, whole = ran(tmp_path / "killed", "b", "1"), ran(tmp_path / "whole")
    continued = ran(tmp_path / "killed")

    assert killed.returncode == -9
    assert not killed.stdout
    row, wanted = json.loads(continued.stdout), json.loads(whole.stdout)
    assert {**row, "seconds": 0} == {**wanted, "seconds": 0}
    assert (tmp_path / "killed.log").read_text().split("\n")[:-1] == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 1", "b 2"]


@pytest.fixture
def allocation():
    yield load("allocation")
    for name in ("common", "kept"):
        sys.modules.pop(name, None)


@pytest.fixture
def kept(allocation, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["kept"], "STEPS", tmp_path)
    return sys.modules["kept"].Kept


def test_the_seconds_of_a_step_are_those_of_the_process_that_did_it(kept):
    work = lambda: sum(number * number for number in range(300_000))
    before = kept.of("S301")
    found, again = before("sum", work), kept.of("S301")

    assert again("sum", lambda: pytest.fail("done twice")) == found == work()
    assert again.seconds == before.seconds > 0


def test_a_step_is_done_again_where_a_file_that_it_loaded_is_another(kept, monkeypatch, capsys):
    kept.of("S301")("step", lambda: 1)
    assert kept.of("S301")("step", lambda: pytest.fail("done twice")) == 1

    now = sys.modules["kept"].code()
    (used,) = [
        path for path in json.loads(next(sys.modules["kept"].STEPS.glob("S301/*.json")).read_text())["code"] if path.endswith("unit.py")
    ]
    monkeypatch.setattr(sys.modules["kept"], "code", lambda: now | {"src/modicum/none.py": "of no step here"})
    assert kept.of("S301")("step", lambda: pytest.fail("done twice")) == 1
    monkeypatch.setattr(sys.modules["kept"], "code", lambda: now | {used: "another"})
    assert kept.of("S301")("step", lambda: 2) == 2
    assert capsys.readouterr().err == f"S301: step is done again, since {used} is another\n"


def test_a_scene_is_made_once_for_each_setting_and_again_where_its_recipe_is_another(kept, monkeypatch, tmp_path):
    (tmp_path / "recipes.py").write_text(
        "def given(folder, seed=0):\n    (folder / 'it').write_text(str(seed))\n    return {'seed': seed}\n"
    )
    for name in ("scenes", "recipes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.syspath_prepend(str(EVIDENCE))
        given, scene = (getattr(importlib.import_module(module), name) for module, name in (("recipes", "given"), ("scenes", "scene")))
    for name in ("scenes", "recipes"):
        monkeypatch.delitem(sys.modules, name)
    made, calls = scene()(given), []
    monkeypatch.setattr(made, "make", lambda folder, **settings: calls.append(settings) or given(folder, **settings))
    monkeypatch.setattr(type(made), "recipe", "one")

    first, again, other = made(seed=1), made(seed=1), made(seed=2)
    assert (first, calls) == (again, [{"seed": 1}, {"seed": 2}])
    assert [(each.folder / "it").read_text() for each in (first, other)] == ["1", "2"]
    assert set(sys.modules["kept"].SCENES.used) >= {"given seed=1", "given seed=2"}
    monkeypatch.setattr(type(made), "recipe", "two")
    assert made(seed=1).folder != first.folder
    assert len(calls) == 3


def test_scenes_of_seeds_that_are_finished_are_not_measured_again(allocation, kept, monkeypatch):
    measured = []
    monkeypatch.setattr(allocation.Scene, "measured", lambda setting, seed, *_, **__: measured.append(seed) or seed)
    work = lambda seed: ({"a": allocation.Outcome(np.array([0.1, seed / 3]), 2.0, 1.9, 7)}, {"seed": seed})
    seeds = lambda *seeds: allocation.Setting(method="a", baselines=(), seeds=seeds)

    first = allocation.by_seed(kept.of("S301"), seeds(0, 1), work)
    both = allocation.by_seed(kept.of("S301"), seeds(0, 1, 2), work)

    assert measured == [0, 1, 2]
    assert allocation.told(both, "seed") == [0, 1, 2]
    assert [outcome.plain() for outcome in allocation.joined(both)["a"]][:2] == [
        outcome.plain() for outcome in allocation.joined(first)["a"]
    ]


def test_a_front_dominates_the_steps_below_its_corner(allocation):
    front = [(0.2, -1.0), (0.5, -2.0)]

    assert allocation.hypervolume(front, (1.0, 0.0)) == pytest.approx(0.3 * 1 + 0.5 * 2)
    assert allocation.hypervolume([*front, (0.6, -1.5), (2.0, -9.0), (0.1, 0.5)], (1.0, 0.0)) == allocation.hypervolume(front, (1.0, 0.0))
    assert allocation.hypervolume([], (1.0, 0.0)) == 0


def test_a_claim_on_allocation_needs_its_conditions_too(allocation):
    setting, kept = allocation.Setting(method="a", baselines=("b",), extra_bytes=0.01), allocation.Kept(Path())
    claim = allocation.Claim(id="S000", system="", claim="", metric="", margin=2.0, setting=setting)
    judged = lambda divergence, size: [
        allocation.Outcome(np.array([divergence, divergence + shift]), 2.0, 1.9, size) for shift in (0.1, 0.2, 0.3)
    ]
    found = {"a": judged(0.1, 101), "b": judged(0.3, 100), "c": judged(0.2, 100)}

    holding = allocation.compared(claim, kept, found, met=True)
    assert (holding["baseline"]["option"], holding["holds"]) == ("c", True)
    assert holding["gains"] == pytest.approx([0.1, 0.1, 0.1])
    assert not allocation.compared(claim, kept, found, met=False)["holds"]
    assert not allocation.compared(claim, kept, found | {"a": judged(0.1, 102)})["holds"]
    assert not allocation.compared(claim, kept, found | {"a": judged(0.25, 100)})["holds"]


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


def test_an_interaction_is_what_two_layers_cause_together_beyond_what_each_does(allocation, monkeypatch):
    monkeypatch.setitem(sys.modules, "allocation", allocation)
    interactions = load("interactions")
    noise = np.array([0.9, 1.0, 1.1])
    alone = {"a": 0.04 * noise, "b": 0.01 * noise}

    strength, error, *means, names = interactions.told(0.06 * noise, alone, ("a", "b"))

    assert (strength, *means) == pytest.approx((0.5, 0.04, 0.01))  # 0.01 nats more than the sum, over sqrt(0.04 * 0.01)
    assert error == pytest.approx(0.5 * 0.1 / 3**0.5)
    assert names == "a with b"
    assert interactions.pairs(["a", "b", "c"])[:2] == [("a", "b"), ("b", "c")]
    assert len(interactions.pairs(["a", "b", "c"])) == 2 + interactions.FAR


def test_a_row_is_put_among_those_that_another_run_wrote_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(run, "PAGE", tmp_path / "evidence.md")
    first, second = RESULTS[:2]
    run.write({first["id"]: first})
    run.write({second["id"]: second})
    assert list(run.known()) == [first["id"], second["id"]]
