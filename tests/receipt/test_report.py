import base64
import copy
import hashlib
import json
import re
import shlex
from html import unescape

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
        *("8.750 → 9.125", "0.02345", "0.02100 to 0.02500", "64 sequences", "forecast 0.00200"),
        *("transformers.from_pretrained", "largest 1.25e-09", "60.0 % of the bytes", "embed.weight target: tied 32,000"),
        *("layers.0.[q,k] fused gptq 16,000 32,000 8,500 0.001", "damping raised", "a note on the model", "a note on the data"),
        *("measure 1.5 900.000 MB", "ab" * 32, "cd" * 32, "01" * 32, "4,096 to calibrate", "threads 1"),
    ):
        assert said in text, said


def test_page_is_whole_and_needs_nothing_else(read, chosen):
    for each in (receipt(), chosen):
        html = report(each)
        page = read(html)
        assert page.open == [] and len(html) < 500_000
        assert not page.tags & {"link", "img", "iframe", "object"}
        assert all(address.startswith("#") for address in page.addresses)
        assert "url(http" not in html and "@import" not in html
        (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
        assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
        (code,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() in policy


def test_the_frontier_is_drawn_for_a_screen_and_for_a_phone_in_both_schemes(chosen):
    html = report(chosen)
    wide, narrow = re.findall(r'<div class="(?:wide|narrow)">.*?</svg>', html, re.DOTALL)[:2]
    assert "prefers-color-scheme: dark" in wide and "prefers-color-scheme: dark" in narrow
    for said in ("expected, as this one turned out", "this result, measured", "bytes of the weight files", "small", "large"):
        assert said in wide and said in narrow, said
    used = [set(re.findall(r'xlink:href="#(\w+)"', svg)) for svg in (wide, narrow)]
    assert used[0] and not used[0] & used[1]
    assert "<circle" not in report(receipt())  # nothing was chosen from: no frontier


def shown(html):
    return json.loads(re.search(r'id="plans">(.*?)</script>', html, re.DOTALL)[1])


def test_every_plan_has_what_it_is_expected_to_lose_and_is_spent_on(chosen):
    told = shown(report(chosen))
    points = told["points"]
    assert [point["degree"] for point in points] == ["large", "large", "small", "small", "near-lossless"]
    assert [point["lost"] for point in points] == pytest.approx([0.32, 0.16, 0.032, 0.02, 0.0])  # the forecast, twice
    assert points[2]["bytes"] == 10_000 and told["chosen"] == 2
    two, four, kept = (points[place]["spent"] for place in (0, 2, 4))
    of = lambda spent, option: next(row for row in spent if row["option"] == option)
    assert of(two, "gptq bits=2") == {"option": "gptq bits=2", "sites": 8, "bytes": 3_000, "bits": 2.0, "beyond": 0.5}
    assert of(four, "gptq bits=4")["bits"] == 4.0 and of(kept, "keep")["beyond"] is None
    for point in points:
        assert sum(row["bytes"] for row in point["spent"]) == point["bytes"]


def test_the_map_has_a_row_for_every_part_and_a_place_for_every_block(chosen):
    bare = copy.deepcopy(chosen)
    for name in ("model.layers.0.mlp.up", *(f"model.layers.1.experts.w[{index}]" for index in range(3))):
        bare["frontier"]["sites"][name] = [[0, 1, 700, 0.001, 0.25]]
        if "experts" in name:
            bare["sites"].append(site(name, "gptq bits=4", 1000, 700))
    rows = {row["name"]: row for row in shown(report(bare))["rows"]}
    assert list(rows) == ["model.layers.*.attn.q", "model.layers.*.mlp.up", "model.layers.*.experts.w", "all blocks:ffn", "embed"]
    assert [cell is None for cell in rows["model.layers.*.experts.w"]["cells"]] == [True, False, True, True]
    (state,) = rows["model.layers.*.experts.w"]["cells"][1]["states"]
    assert state["said"] == "3 × gptq bits=4" and state["bits"] == pytest.approx(5.6)
    assert [state["short"] for state in rows["all blocks:ffn"]["cells"][0]["states"]] == ["50%", "keep"]
    assert rows["embed"]["cells"][0]["states"][0]["said"] == "not treated (target: embedding)"


@pytest.mark.parametrize(
    "mean, name, said", [(0.001, "near-lossless", "Near-lossless"), (0.3, "large", "A large loss"), (2.0, "broken", "Broken")]
)
def test_a_good_result_is_told_from_a_bad_one_at_a_glance(read, mean, name, said):
    quality = {"metric": "mean KL per token", "mean": mean, "low": mean, "high": mean, "sequences": 8, "tokens": 8}
    html = report(receipt(quality=quality))
    assert f'<section class="verdict" data-degree="{name}"' in html and f"<b>{said}" in html
    assert html.count('aria-current="true"') == 1


def test_says_how_to_make_it_again_where_a_command_can(read, chosen):
    (command,) = re.findall(r'<pre class="command"[^>]*>(.*?)</pre>', report(chosen), re.DOTALL)
    words = shlex.split(unescape(command).replace("\\\n", " "))
    assert words == [
        "modicum",
        "fit",
        "a toy",
        "--size",
        "10kB",
        "--keep",
        "*.q",
        "--keep",
        "x y",
        "--allow-fallback",
        "--out",
        "out/again",
    ]
    several = {"model": "x", "menu": ["gptq bits=4", "gptq bits=8"], "heal_with": ["norms", "held"], "set": ["a: keep", "b: keep"]}
    (command,) = re.findall(r'<pre class="command"[^>]*>(.*?)</pre>', report({**chosen, "asked": several}), re.DOTALL)
    words = shlex.split(unescape(command).replace("\\\n", " "))
    assert words[3:-2] == ["--menu", "gptq bits=4,gptq bits=8", "--heal-with", "norms,held", "--set", "a: keep", "--set", "b: keep"]
    assert "To make it again" not in report({**chosen, "asked": {"model": "x", "given_in_python": ["data"]}}) + report(receipt())


def test_an_event_is_told_once(read):
    told = receipt(events=["a note on the model", "another"])
    assert read(report(told)).text.count("a note on the model") == 1


def test_says_what_every_way_to_load_it_comes_to(read, chosen):
    loads = {"dequantize=True": {"result": "wrong", "largest": 0.875}, "elsewhere": {"result": "fails", "why": "no such type"}}
    text = read(report({**chosen, "verification": {"loader": "a loader", **loads}})).text
    assert "dequantize=True a wrong model, without a word: do not use it (largest divergence 0.88)" in text
    assert "elsewhere does not load (no such type)" in text


def test_blocks_are_told_in_numbers_and_drawn_without_and_with_data(read, chosen):
    html = report(chosen)
    text = read(html).text
    assert "Without data: each option's stand-in" in text and "mean over 512 tokens of 8 sequences" in text
    assert "model.layers.1 20.00 % 4.00 %" in text and "model.layers.2 30.00 % left out" in text
    wide, narrow = re.findall(r"<svg(?:(?!</svg>).)*depth-(?:wide|narrow).*?</svg>", html, re.DOTALL)
    for drawn in (wide, narrow):
        assert "the same plan without data" in drawn and "this result" in drawn and "model.layers" in drawn
    alone = {**chosen["by_block"], "rows": [{"block": row["block"], "after": row["after"]} for row in chosen["by_block"]["rows"]]}
    html = report({**chosen, "by_block": alone})
    assert "without data" not in html.lower() and "model.layers.1 4.00 %" in read(html).text
    assert "block by block" not in report(receipt())


def test_texts_of_both_models_stand_side_by_side(read, chosen):
    text = read(report(chosen)).text
    assert "beginning def f(x): original return x compressed return y" in text
    same = {**chosen, "texts": [{"prompt": "a", "original": "b", "compressed": "b"}]}
    assert "compressed (the same) b" in read(report(same)).text and "Text, before" not in report(receipt())


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
    assert "<script>alert" not in html and html.count("<script") == 2  # our own and its numbers
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
    assert "perplexity" not in text and "Not judged" in text and 'data-degree=""' in html


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
    more = report(receipt(sites=many["sites"] * 3))
    assert "6000 choices, in call order; the first 3,000 here, all in receipt.json" in more and len(more) < 4_000_000


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
