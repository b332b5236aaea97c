import copy
import json
import re

import matplotlib
import pytest

from modicum.core.errors import SettingError
from modicum.receipt import read_receipt, report

HOSTILE = "<script>alert('$x_$')</script>"


def site(name, option, weights, stored, harm=0.001, kind="unit"):
    return {
        **{"site": name, "kind": kind, "option": option, "weights": weights, "data_free": "", "original_bytes": 2 * weights},
        **{"bytes": stored, "harm": harm},
    }


def receipt(**changed):
    """A small receipt by hand, with the parts that `fit` writes."""
    stages = {name: {"seconds": 1.5, "peak_bytes": 900_000_000} for name in ("open", "measure", "judge")}
    body = {
        "format": "modicum-receipt",
        "version": 1,
        "model": {
            **{"name": "models/toy", "class": "LlamaForCausalLM", "parameters": 40_000, "dtype": "bfloat16", "blocks": 1, "units": 3},
            **{"hash": "ab" * 32, "notes": ["a note on the model"]},
        },
        "request": {
            **{"budget": "8 bpw", "method": None, "plan": False, "target": "transformers", "keep": [], "allocator": "integer_program"},
            **{"menu": ["gptq bits=2", "gptq"], "harm": "fisher"},
        },
        "data": {
            **{"source": "shipped", "notes": ["a note on the data"], "hashes": {"calibration": "cd" * 32, "test": "ef" * 32}},
            **{"calibration_tokens": 4096, "test_tokens": 2048},
        },
        "seed": 0,
        "versions": {"modicum": "0.1.0", "threads": 1, "device": "cpu"},
        "bytes": {
            **{"original": 80_000, "predicted": 36_123, "actual": 36_123, "allowed": 40_000, "bits_per_weight": 7.2246},
            "files": {"model.safetensors": {"bytes": 36_123, "sha256": "01" * 32}},
        },
        "coverage": {
            **{"treated_bytes": 48_000, "layer_bytes": 80_000, "share": 0.6},
            "untreated": [{"unit": "embed.weight", "bytes": 32_000, "reason": "target: tied"}],
        },
        "sites": [site("layers.0.[q,k]", "gptq", 16_000, 8_500, kind="fused"), site("layers.0.down.weight", "gptq bits=2", 8_000, 2_300)],
        "predicted_harm": 0.002,
        "quality": {
            **{"metric": "mean KL per token", "mean": 0.02345, "low": 0.021, "high": 0.025, "sequences": 64, "tokens": 2048},
            **{"perplexity": 9.125, "perplexity_original": 8.75},
        },
        "verification": {"loader": "transformers.from_pretrained", "logits": {"largest": 1.25e-9, "sequences": 8}},
        "events": ["layers.0: damping raised to 0.1"],
        "stages": stages,
    }
    return copy.deepcopy(body | changed)


def test_says_what_was_done_measured_and_verified(read):
    text = read(report(receipt())).text
    for said in (
        *("models/toy", "80.000 kB → 36.123 kB", "36,123 bytes", "7.225 bits per weight", "budget 8 bpw, 40,000 bytes"),
        *("8.750 → 9.125", "0.02345", "0.02100 to 0.02500", "64 sequences", "The plan predicted 0.00200"),
        *("transformers.from_pretrained", "largest 1.25e-09", "60.0 % of the bytes", "embed.weight target: tied 32,000"),
        *("layers.0.[q,k] fused gptq 16,000 32,000 8,500 0.001", "damping raised", "a note on the model", "a note on the data"),
        *("measure 1.5 900.000 MB", "ab" * 32, "cd" * 32, "01" * 32, "4,096 to calibrate", "threads 1"),
    ):
        assert said in text, said


def test_page_is_whole_and_needs_nothing_else(read):
    html = report(receipt())
    page = read(html)
    assert page.open == []
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert all(address.startswith("#") for address in page.addresses)
    assert "url(http" not in html and "@import" not in html


def test_each_scheme_has_its_chart_and_their_inner_names_differ():
    html = report(receipt())
    light, dark = re.findall(r'<div class="(?:light|dark)".*?</svg>', html, re.DOTALL)
    assert "prefers-color-scheme: dark" in html
    assert all("gptq bits=2 (2.30 bits)" in svg and "not treated (16.00 bits)" in svg for svg in (light, dark))
    used = [set(re.findall(r'xlink:href="#(\w+)"', svg)) for svg in (light, dark)]
    assert used[0] and not used[0] & used[1]


def test_same_receipt_gives_same_page_and_leaves_matplotlib_alone():
    before, given = dict(matplotlib.rcParams), receipt()
    assert report(given) == report(receipt())
    assert given == receipt()
    assert dict(matplotlib.rcParams) == before
    assert "Date" not in report(given) and "dc:date" not in report(given)


@pytest.mark.parametrize("place", ["site", "option", "model", "event", "untreated", "note", "verification"])
def test_names_are_text_never_markup(read, place):
    hostile = receipt()
    if place in ("site", "option"):
        hostile["sites"][0][place] = HOSTILE
    elif place == "model":
        hostile["model"]["name"] = HOSTILE
    elif place == "event":
        hostile["events"] = [HOSTILE]
    elif place == "untreated":
        hostile["coverage"]["untreated"][0]["unit"] = HOSTILE
    elif place == "note":
        hostile["data"]["notes"] = [HOSTILE]
    else:
        hostile["verification"][HOSTILE] = HOSTILE
    html = report(hostile)
    assert "<script" not in html
    assert HOSTILE in read(html).text


def test_what_was_not_measured_is_left_out(read):
    bare = receipt(quality=None, verification={}, predicted_harm=None, events=[])
    bare["bytes"]["allowed"] = bare["request"]["budget"] = None
    bare["request"]["method"] = "gptq bits=4"
    bare["sites"] = [row | {"harm": None} for row in bare["sites"]]
    html = report(bare)
    text = read(html).text
    for said in ("Not measured.", "Not verified.", "no budget: gptq bits=4 was asked for"):
        assert said in text
    assert "perplexity" not in text and "predicted harm</text>" not in html and "predicted harm</text>" in report(receipt())


def test_tells_how_the_plan_was_chosen(read):
    rank = {"plans": 30, "sequences": 8, "spearman": 0.98765, "unscaled": 0.9, "real_over_predicted": 1.1}
    search = {
        "allocator": "auto",
        "seconds": 41.25,
        "evaluations": 120,
        "hits": 15,
        "start": 0.5,
        "end": 0.25,
        "harm": "fisher",
        "rank": rank,
    }
    text = read(report(receipt(search=search))).text
    assert "divided by auto in 41.2 seconds, which judged 120 candidates" in text and "found 15 more to be known already" in text
    assert "what was chosen, the mean divergence on them went from 0.50000 to 0.25000." in text
    assert "ranks 30 random plans, each judged on 8 validation sequences, with Spearman r = 0.988" in text
    text = read(report(receipt(search={"allocator": "hawq", "seconds": 0.5, "rank": rank | {"spearman": None}}))).text
    assert "divided by hawq in 0.5 seconds." in text and "judged" not in text.partition("Verification")[0].partition("Choice")[2]
    assert "left out: too slow." in read(report(receipt(search=search | {"skipped": "too slow"}))).text


@pytest.mark.parametrize(
    "told, said",
    [
        (
            {"taken": False, "lost": 0.5, "chosen": 0.25, "sequences": 16},
            "loses 0.5 where the choice loses 0.25, on 16 validation sequences.",
        ),
        ({"taken": False, "lost": 0.5, "chosen": 0.25, "sequences": 0}, "loses 0.5 where the choice loses 0.25, by the forecast."),
        ({"taken": True, "lost": 0.5, "chosen": 0.9, "sequences": 16}, "does better and was taken."),
        ({"taken": True, "rise": 0.01, "chosen_bytes": 900, "sequences": 16}, "does better and was taken."),
    ],
)
def test_tells_how_the_choice_compares_with_one_option_everywhere(read, told, said):
    plain = {"option": "gptq bits=2 group=0", "bytes": 800, "forecast": 0.4, **told}
    text = read(
        report(receipt(search={"allocator": "auto", "seconds": 1.0, "plain": plain}, verdict="a large loss (0.5 nats per token)."))
    ).text
    assert f"gptq bits=2 group=0 on every layer that takes it, {said}" in text
    assert "Verdict: a large loss (0.5 nats per token)." in text


@pytest.mark.parametrize("without", [{}, {"search": {}}])
def test_a_run_that_chose_nothing_has_no_choice_to_tell(read, without):
    assert "Choice" not in read(report(receipt(**without))).text


def test_structure_is_told_apart_from_weights(read):
    structure = [
        site("model", "blocks count=1 first=1", 0, 0, 0.01, kind="span"),
        site("layers.0.mlp:ffn", "ziplm keep=0.5", 0, 0, 0.002, kind="cut"),
        site("layers.2.mlp:ffn", "ziplm keep=0.5", 0, 0, 0.003, kind="cut"),
    ]
    gone = [site("layers.1.up.weight", "dropped", 8_000, 0, None), site("layers.1.down.weight", "dropped", 8_000, 0, None)]
    text = read(report(receipt(sites=structure + receipt()["sites"] + gone))).text
    assert "Blocks left out: blocks count=1 first=1 ; 2 choices went with them." in text
    assert "Cut by ziplm keep=0.5 : layers.0.mlp:ffn , layers.2.mlp:ffn ." in text
    assert "layers.0.mlp:ffn cut ziplm keep=0.5 0.002" in text and "layers.1.up.weight dropped 8,000 16,000 0" in text


def test_a_budget_need_not_be_one_of_bytes(read):
    other = receipt()
    other["bytes"]["allowed"], other["request"]["budget"] = None, "60 % of parameters"
    assert "no budget" not in (text := read(report(other)).text) and "budget 60 % of parameters" in text


def test_outputs_without_labels_have_no_perplexity(read):
    image = receipt()
    image["quality"] = {"metric": "relative squared error", "mean": 0.5, "low": 0.25, "high": 0.75, "sequences": 8, "tokens": 8}
    text = read(report(image)).text
    assert "0.50000 relative squared error" in text and "perplexity" not in text


def test_model_without_sites_has_no_chart(read):
    page = read(report(receipt(sites=[])))
    assert "svg" not in page.tags and "0 choices" in page.text


def test_thousands_of_sites_stay_a_page_that_opens():
    many = receipt(sites=[site(f"layers.{i}.experts.gate_up_proj[{i % 64}]", "gptq", 8_000, 4_000 + i) for i in range(2000)])
    assert len(report(many)) < 2_000_000


# Reading


def test_reads_what_was_written(tmp_path):
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt()))
    assert read_receipt(path) == read_receipt(str(path)) == receipt()


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "must be a readable JSON file"),
        (b"\xff\xfe", "must be a readable JSON file"),
        ("[1]", "must be an object of format modicum-receipt"),
        (json.dumps({"format": "other", "version": 1}), "must be an object of format modicum-receipt"),
        (json.dumps(receipt(version=2)), "must be of version 1, is 2"),
        (json.dumps({"format": "modicum-receipt", "version": 1, "model": {}}), "request, data"),
    ],
)
def test_refuses_what_is_no_receipt(tmp_path, content, said):
    path = tmp_path / "receipt.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingError, match=said) as caught:
        read_receipt(path)
    assert str(path) in str(caught.value)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(SettingError, match="No such file"):
        read_receipt(tmp_path / "receipt.json")
