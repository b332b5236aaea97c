"""The page that `modicum report` writes: of one result, or of several side by side."""

import json
import re

import pytest
from click.testing import CliRunner

from modicum.cli.main import main


@pytest.fixture
def results(chosen, tmp_path):
    """Two results of one original, the second of fewer bytes and more loss."""
    worse = {
        **chosen,
        "quality": {**chosen["quality"], "mean": 0.7, "low": 0.6, "high": 0.8},
        "bytes": {**chosen["bytes"], "actual": 7_000},
    }
    worse["sites"] = [row | {"option": "gptq bits=2"} for row in chosen["sites"]]
    for name, receipt in (("good", chosen), ("bad", worse)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "receipt.json").write_text(json.dumps(receipt))
    return tmp_path


def run(*words):
    return CliRunner().invoke(main, ["report", *map(str, words)])


def test_numbers_of_dots_that_lie_close_do_not_cover_each_other(results):
    places = [results / "good"] * 3 + [results / "bad"]
    assert run(*places, "--out", results / "page.html").exit_code == 0
    html = (results / "page.html").read_text()
    for shape in ("wide", "narrow"):
        drawn = html[html.index(f'<div class="{shape}">') :].partition("</svg>")[0]
        found = [(float(x), float(y)) for x, y in re.findall(r'font-size: 12px[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>\d</text>', drawn)]
        assert len(found) == 4
        for place, (x, y) in enumerate(found):
            assert all(abs(x - other) >= 8 or abs(y - over) >= 13 for other, over in found[:place])


def test_one_result_gives_its_page(results, chosen):
    from modicum.receipt import report

    done = run(results / "good", "--out", results / "page.html")
    assert done.exit_code == 0 and str(results / "page.html") in done.stdout
    assert (results / "page.html").read_text() == report(chosen)


def test_several_results_stand_side_by_side(results, read):
    assert run(results / "good", results / "bad", "--out", results / "page.html").exit_code == 0
    html = (results / "page.html").read_text()
    page = read(html)
    assert page.open == [] and "script" not in page.tags and all(address.startswith("#") for address in page.addresses)
    assert 'data-degree="small"' in html and 'data-degree="broken"' in html and html.count("<svg") == 2
    assert "Against the first it loses 0.668 more (95 % interval +" in page.text and "beyond chance" in page.text
    assert "model.layers.0.attn.q gptq bits=4 gptq bits=2" in page.text
    worse = json.loads((results / "bad" / "receipt.json").read_text())
    worse["data"]["hashes"] = {"test": "0" * 64}
    assert "on other sequences" not in page.text
    (results / "bad" / "receipt.json").write_text(json.dumps(worse))
    assert run(results / "good", results / "bad", "--out", results / "others.html").exit_code == 0
    assert "unpaired, on other sequences): beyond chance" in read((results / "others.html").read_text()).text


@pytest.fixture
def judged(results, chosen):
    """What `modicum eval --json` wrote of somebody else's model of 9,000 bytes, on the sequences of the receipts."""
    (results / "theirs").mkdir()
    (results / "theirs" / "model.safetensors").write_bytes(bytes(9_000))
    return {
        "format": "modicum-evaluation", "version": 1, "model": str(results / "theirs"), "reference": "toy", "seed": 3,
        "data": {"source": "shipped", "notes": [], "hash": "ef" * 32}, "quality": {**chosen["quality"], "mean": 0.05, "low": 0.04, "high": 0.06},
    }  # fmt: skip


def test_anybodys_model_stands_beside_them_once_it_is_judged(results, judged, read):
    (results / "theirs.json").write_text(json.dumps(judged))
    assert run(results / "good", results / "theirs.json", "--out", results / "page.html").exit_code == 0
    text = read((results / "page.html").read_text()).text
    assert "9.000 kB, 5.143 bits per weight; loses 0.05000" in text and "Against the first it loses 0.018 more" in text
    (results / "theirs" / "model.safetensors").unlink()
    assert run(results / "good", results / "theirs.json", "--out", results / "page.html", "--overwrite").exit_code == 0
    assert "its files are not here" in read((results / "page.html").read_text()).text


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"reference": None}, "is against nothing. Pass --reference toy"), ({"reference": "another"}, "is against another"),
        ({"format": "x"}, "is another file"), ({"data": 3}, "must be as fit writes them"),
    ],
)  # fmt: skip
def test_an_evaluation_must_be_of_the_same_original(results, judged, changed, said):
    (results / "theirs.json").write_text(json.dumps(judged | changed))
    done = run(results / "good", results / "theirs.json", "--out", results / "page.html")
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
    done = run(results / "theirs.json", results / "theirs.json", "--out", results / "page.html")
    assert done.exit_code == 2 and "a folder that fit wrote must be among what is compared" in done.stderr


def test_a_page_that_is_there_is_kept_unless_it_may_go(results):
    (results / "page.html").write_text("mine")
    done = run(results / "good", "--out", results / "page.html")
    assert done.exit_code == 2 and "exists already" in done.stderr and (results / "page.html").read_text() == "mine"
    assert run(results / "good", "--out", results / "page.html", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    "second, said",
    [("none", "must be a folder that modicum wrote, is none"), ("empty", "holds no receipt.json"), ("other", "all results must be of one original"),
     ("torn", "its parts must be as fit writes them")],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_sentence(results, chosen, second, said):
    (results / "empty").mkdir()
    for name, changed in (("other", {"model": {**chosen["model"], "hash": "cd" * 32}}), ("torn", {"sites": 3})):
        (results / name).mkdir()
        (results / name / "receipt.json").write_text(json.dumps({**chosen, **changed}))
    for words in ((results / "good", results / second), *([(results / second,)] if second != "other" else [])):
        done = run(*words, "--out", results / "page.html")
        assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
        assert not (results / "page.html").exists()
