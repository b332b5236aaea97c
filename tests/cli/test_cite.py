"""The papers behind a result."""

import json

import pytest
from click.testing import CliRunner

from modicum.allocate import ALLOCATORS
from modicum.allocate._papers import HARMS, PAPERS
from modicum.cli.main import main
from modicum.core.errors import SettingError
from modicum.core.method import registry
from modicum.receipt import cited
from modicum.table.harm import HARMS as KNOWN_HARMS

# What comes from no paper: plain arithmetic, baselines, and what was made here.
UNSOURCED = {"auto", "dynamic_program", "integer_program", "random", "uniform"}


def receipt(*options, **search):
    return {"sites": [{"site": f"site {place}", "option": option} for place, option in enumerate(options)], "search": search}


def keys(found):
    return [one.key for one in found]


def test_every_method_and_allocator_has_its_source():
    plain = {"quantize/half", "quantize/nearest", "adapt/full", "adapt/shift", "adapt/topk", "restrict/dense"}
    assert {key for key, cls in registry().items() if cls.paper is None} == plain
    assert PAPERS.keys() | UNSOURCED == ALLOCATORS.keys() and not PAPERS.keys() & UNSOURCED
    assert HARMS.keys() <= KNOWN_HARMS.keys()


def test_a_result_cites_what_its_layers_hold_most_used_first():
    found = cited(receipt("gptq bits=4", "gptq bits=3 group=16 | eora rank=2", "nearest bits=8, keep", "keep", "dropped"))
    assert keys(found) == ["quantize/gptq", "repair/eora", "quantize/nearest"]
    assert found[0].where == "on 2 choices" and found[0].paper is registry()["quantize/gptq"].paper
    assert found[2].paper is None


def test_a_choice_cites_how_it_was_made():
    found = cited(receipt("gptq bits=4", allocator="evopress", harm="covariance", evaluations=12))
    assert keys(found)[1:] == ["allocate/evopress", "allocate/cache", "harm/covariance"] and all(one.paper for one in found)
    assert keys(cited(receipt("gptq bits=4", allocator="uniform", harm="error"))) == ["quantize/gptq", "allocate/uniform"]


def test_an_option_of_another_version_is_told():
    with pytest.raises(SettingError, match=r"option 'newest bits=1': must be one that this version knows \(.*\)\. Use the modicum"):
        cited(receipt("newest bits=1"))


def cite(tmp_path, *words):
    body = {"format": "modicum-receipt", "version": 1, **receipt("wanda keep=0.5", "nearest bits=4", allocator="hawq", harm="error")}
    body |= {"model": {"name": "m"}, "data": {"source": "shipped"}, "request": {"target": "modicum"}, "seed": 0}
    for part in ("versions", "bytes", "values", "coverage", "stages", "verification", "quality", "events"):
        body.setdefault(part, {} if part != "events" else [])
    (tmp_path / "receipt.json").write_text(json.dumps(body))
    return CliRunner().invoke(main, ["cite", str(tmp_path), *words], catch_exceptions=False)


def test_the_command_prints_bibtex_with_what_was_used_where(tmp_path):
    result = cite(tmp_path)
    assert result.exit_code == 0, result.output
    assert "% prune/wanda, on one choice\n@misc{prune-wanda,\n  title = {A Simple" in result.stdout
    assert "% quantize/nearest, on one choice: comes from no paper\n" in result.stdout
    assert "@misc{allocate-hawq," in result.stdout


def test_the_command_prints_plain_lines_and_json(tmp_path):
    first = cite(tmp_path, "--plain").stdout.splitlines()[0]
    assert first.startswith("prune/wanda, on one choice: Sun, Mingjie; others: A Simple") and first.endswith("2023, arXiv 2306.11695.")
    rows = json.loads(cite(tmp_path, "--json").stdout)
    assert rows[0]["paper"]["arxiv"] == "2306.11695" and rows[1]["paper"] is None


def test_a_folder_that_fit_did_not_write_is_refused(tmp_path):
    result = CliRunner().invoke(main, ["cite", str(tmp_path)])
    assert result.exit_code == 2 and "must hold a receipt.json, holds none" in result.stderr
