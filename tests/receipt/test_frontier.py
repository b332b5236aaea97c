"""The frontier: points that fit delivers, and a picture that can be read."""

import importlib
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.core.plan import Choice, Table
from modicum.receipt import frontier
from modicum.receipt.curves import GRID, page, picture
from modicum.receipt.frontier import places, shares, sizes
from modicum.receipt.svg import DARK
from modicum.testing import zoo

# Options whose forms do not depend on the inputs: what is judged alone is what assembly makes.
MENU = "nearest bits=3,nearest bits=4,nearest bits=8"
UNSCALED = {"harm": "error", "search_time": 0}
HOSTILE = "<script>alert('$x_$')</script>"
WRITTEN = ("frontier.html", "frontier.json", "frontier.svg")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A measured module in memory, and its frontier."""
    model, batches = zoo.build("llama")
    measured = modicum.measure(model.train(), out=tmp_path_factory.mktemp("llama") / "m", data=batches, menu=MENU, **UNSCALED)
    return measured, frontier(measured, points=6, measured_at=3)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    model, batches = zoo.build("mlp")
    return modicum.measure(model, out=tmp_path_factory.mktemp("mlp") / "m", data=batches, menu=MENU, **UNSCALED)


def everything(found):
    return [(curve["target"], point) for curve in found["curves"] for point in curve["points"]]


# What the points say


def test_every_target_has_points_from_the_cheapest_to_everything_kept(llama):
    measured, found = llama
    assert [curve["target"] for curve in found["curves"]] == measured.meta["targets"] == ["transformers", "modicum"]
    for curve in found["curves"]:
        points = curve["points"]
        assert 2 < len(points) <= 6
        assert all(a["allowed"] < b["allowed"] and a["chosen"]["harm"] >= b["chosen"]["harm"] for a, b in pairwise(points))
        assert points[-1]["chosen"]["harm"] == 0 and points[-1]["chosen"]["shares"].keys() == {"keep", "not treated"}
        assert points[-1]["chosen"]["bytes"] == pytest.approx(measured.meta["model"]["bytes"], rel=0.05)


def test_bytes_stay_within_what_is_allowed_and_the_choice_is_no_worse_than_uniform(llama):
    for _, point in everything(llama[1]):
        assert max(point["chosen"]["bytes"], point["uniform"]["bytes"]) <= point["allowed"]
        assert point["chosen"]["harm"] <= point["uniform"]["harm"] + 1e-12
        for entry in (point["chosen"], point["uniform"]):
            assert sum(entry["shares"].values()) == pytest.approx(1)
            assert entry["bits_per_weight"] == 8 * entry["bytes"] / llama[1]["model"]["parameters"]


def test_fit_delivers_what_was_measured(llama):
    """Where fit chooses alike, its files have the bytes and its model the quality that the frontier says."""
    measured, found = llama
    alike = 0
    for target, point in everything(found):
        said = point["chosen"]
        if said["measured"] and target == "modicum" and point is not found["curves"][-1]["points"][0]:
            receipt = modicum.fit(measured=measured, size=said["bytes"], target=target, allocator="integer_program").receipt
            assert receipt["bytes"]["actual"] <= said["bytes"]
            if receipt["predicted_harm"] == said["harm"]:
                alike += 1
                assert receipt["bytes"]["actual"] == said["bytes"]
                assert receipt["quality"]["mean"] == pytest.approx(said["measured"]["mean"], rel=1e-5)
                assert receipt["quality"]["perplexity"] == pytest.approx(said["measured"]["perplexity"], rel=1e-5)
    assert alike


def test_as_many_points_as_asked_for_are_measured_uniform_beside_them(llama):
    for curve in llama[1]["curves"]:
        done = [place for place, point in enumerate(curve["points"]) if point["chosen"]["measured"]]
        assert done == places(len(curve["points"]), 3) and len(done) == 3
        assert done == [place for place, point in enumerate(curve["points"]) if point["uniform"]["measured"]]
    for _, point in everything(llama[1]):
        if found := point["chosen"]["measured"]:
            assert found["low"] <= found["mean"] <= found["high"] and found["perplexity_original"] > 1


def test_cuts_and_dropped_blocks_are_named(tmp_path):
    model, batches = zoo.build("llama")
    menu = ["nearest bits=8", "ziplm keep=0.5", "blocks count=1"]
    measured = modicum.measure(model, out=tmp_path / "m", data=batches, menu=menu, target="modicum", **UNSCALED)
    least = frontier(measured, points=3, measured_at=1)["curves"][0]["points"][0]["chosen"]
    (block,) = least["dropped"]["blocks"]
    assert least["dropped"]["option"].startswith("blocks count=1") and block in least["dropped"]["option"].replace(
        "first=", "model.layers."
    )
    assert set(least["cuts"].values()) == {"ziplm keep=0.5"} and not any(site.startswith(f"{block}.") for site in least["cuts"])
    assert least["measured"]["mean"] > 0 and "1 block dropped, 4 cuts" in " ".join((tmp_path / "m" / "frontier.html").read_text().split())


def test_a_model_without_labels_has_no_perplexity(mlp, read):
    found = frontier(mlp, points=5, measured_at=2)
    (curve,) = found["curves"]
    summary = curve["points"][0]["chosen"]["measured"]
    assert summary["metric"] == "relative squared error" and "perplexity" not in summary
    assert "perplexity" not in read((mlp.directory / "frontier.html").read_text()).text
    assert "relative squared error of outputs" in (mlp.directory / "frontier.svg").read_text()


# What is written


def test_the_same_measurement_gives_the_same_bytes_and_leaves_nothing_else(mlp, tmp_path):
    before = {path.name: path.read_bytes() for path in mlp.directory.iterdir() if path.name not in WRITTEN}
    written = []
    for _ in range(2):
        found = frontier(mlp, points=4, measured_at=2)
        written.append([(mlp.directory / name).read_bytes() for name in WRITTEN])
        assert json.loads(written[-1][1]) == found
    assert written[0] == written[1]
    assert {path.name for path in mlp.directory.iterdir()} == before.keys() | set(WRITTEN)
    assert all((mlp.directory / name).read_bytes() == content for name, content in before.items())


def test_a_callers_module_is_left_as_it_was(llama):
    assert llama[0].source.training


def test_one_target_may_be_asked_for_and_nothing_measured(llama, tmp_path):
    shutil.copytree(llama[0].directory, tmp_path / "m")
    found = frontier(tmp_path / "m", model=llama[0].source, target="modicum", points=3, measured_at=0)
    assert [curve["target"] for curve in found["curves"]] == ["modicum"] and not any(p["chosen"]["measured"] for _, p in everything(found))
    assert "predicted harm, nats" in (tmp_path / "m" / "frontier.svg").read_text()


@pytest.mark.parametrize(
    "settings, error, said",
    [
        ({"points": 1}, SettingError, "points: must be at least 2, got 1"),
        ({"measured_at": -1}, SettingError, "measured_at: must be 0 or more, got -1"),
        ({"target": "transformers"}, SettingError, "'transformers': was not measured in .* Known: modicum"),
        ({"samples": 3}, SettingError, "samples: was 128 when .* cannot be 3 now"),
        ({"model": zoo.Mlp()}, SettingError, "must be the model that was measured"),
    ],
)
def test_what_cannot_be_drawn_is_refused(mlp, settings, error, said):
    before = set(mlp.directory.iterdir())
    with pytest.raises(error, match=said):
        frontier(mlp, **settings)
    assert set(mlp.directory.iterdir()) == before


def test_a_module_that_was_in_memory_must_be_given_again(mlp):
    with pytest.raises(SettingError, match="Give it again as the model"):
        frontier(mlp.directory)


def test_what_is_no_measurement_is_refused(tmp_path):
    with pytest.raises(SettingError, match="must be a folder that measure wrote"):
        frontier(tmp_path)


def test_a_folder_that_is_gone_is_told(mlp, tmp_path):
    shutil.copytree(mlp.directory, tmp_path / "m")
    moved = modicum.Measured.read(tmp_path / "m")
    assert moved.splits.test
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(ModelError, match=r"must be writable, is not \(No such file or directory\)"):
        frontier(moved, model=mlp.source)


def test_forms_made_on_the_way_go_even_where_it_fails(mlp, monkeypatch):
    def fail(*_):
        assert any(path.is_dir() and any(path.rglob("*.safetensors")) for path in mlp.directory.iterdir())
        raise ModelError("it: stops here.")

    before = set(mlp.directory.iterdir())
    monkeypatch.setattr(importlib.import_module("modicum.receipt.frontier"), "_write", fail)
    with pytest.raises(ModelError, match="stops here"):
        frontier(mlp, points=3, measured_at=1)
    assert set(mlp.directory.iterdir()) == before


# Points of a curve


def table(*sites, fixed=100):
    choices = {f"s{place}": [Choice(text, size, size, harm) for text, size, harm in found] for place, found in enumerate(sites)}
    return Table(choices, {"bytes": fixed})


def test_sizes_are_spaced_evenly_in_their_logarithm():
    found = sizes(table([("keep", 9_900, 0.0), ("small", 0, 1.0)]), 5)
    assert found[0] == 100 and found[-1] == 10_000 and found == [100, 317, 1000, 3163, 10_000]


def test_a_model_of_one_size_has_one_point():
    assert sizes(table([("keep", 900, 0.0)]), 40) == [1000]


@given(st.integers(1, 60), st.integers(0, 60))
def test_places_are_spread_from_the_first_and_spare_the_last(count, measured_at):
    found = places(count, measured_at)
    assert len(found) == min(measured_at, max(count - 1, 1)) and found == sorted(set(found))
    assert not found or found[0] == 0
    assert all(place < max(count - 1, 1) for place in found)


def test_shares_count_what_no_choice_changes():
    found = shares(table([("keep", 300, 0.0), ("a", 100, 1.0)], [("a", 200, 1.0)]), {"s0": 0, "s1": 0})
    assert found == pytest.approx({"keep": 0.5, "a": 1 / 3, "not treated": 1 / 6})


# The picture


def entry(size, harm, mean=None):
    summary = {"metric": "mean KL per token", "mean": mean, "low": 0.9 * mean, "high": 1.2 * mean, "perplexity": 9.5} if mean else None
    shares = {"gptq bits=4": 0.7, "keep": 0.1, "not treated": 0.2}
    return {"bytes": size, "bits_per_weight": size / 1e6, "harm": harm, "shares": shares, "cuts": {}, "dropped": None, "measured": summary}


def made(*targets, name="models/toy", points=12):
    """A frontier by hand: harms that fall with the size, chosen below uniform, some measured."""
    curves = []
    for place, target in enumerate(targets):
        rows = []
        for step in range(points):
            size, harm = (
                int(1e6 * (1.5 + place) * 1.2**step),
                (1 + place) * 10 ** (-0.4 * step) if step < points - 1 or points == 1 else 0.0,
            )
            real = 1.3 * harm if step % 4 == 0 and harm else None
            rows.append({"allowed": size, "chosen": entry(size, harm, real), "uniform": entry(size, 3 * harm, real and 3 * real)})
        curves.append({"target": target, "points": rows})
    return {
        "model": {"name": name, "hash": "ab" * 32, "parameters": 8_000_000, "bytes": 16_000_000},
        "data": {"source": "shipped", "notes": [], "hashes": {"test": "cd" * 32}}, "settings": {"samples": 4},
        "rank": {"plans": 30, "sequences": 8, "spearman": 0.98765}, "curves": curves,
    }  # fmt: skip


def texts(svg):
    """(words, left, right, top, bottom) of every text in an SVG that is not turned."""
    for element in ElementTree.fromstring(svg.encode()).iter("{http://www.w3.org/2000/svg}text"):
        if "x" in element.attrib and "rotate(-90" not in element.attrib.get("transform", ""):
            size = float(re.search(r"font-size: ([\d.]+)px", element.attrib["style"])[1])
            anchor = re.search(r"text-anchor: (\w+)", element.attrib["style"])
            weight = "bold" if "font-weight: 700" in element.attrib["style"] else "normal"
            width = TextPath((0, 0), element.text, size=size, prop=FontProperties(weight=weight)).get_extents().width
            x, y = float(element.attrib["x"]), float(element.attrib["y"])
            left = x - {"middle": width / 2, "end": width}.get(anchor[1] if anchor else "", 0)
            yield element.text, left, left + width, y - size, y


@pytest.mark.parametrize("targets", [("modicum",), ("transformers", "modicum"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("points", [1, 2, 40])
def test_words_do_not_meet_and_stay_inside(targets, points):
    svg = picture(made(*targets, points=points))
    found = list(texts(svg))
    labels = [f"{target}, " if len(targets) > 1 else "" for target in targets]
    assert {f"{label}{kind}" for label in labels for kind in ("chosen", "uniform")} <= {words for words, *_ in found}
    for (one, a, b, c, d), (other, e, f, g, h) in combinations(found, 2):
        assert b <= e or f <= a or d <= g or h <= c, (one, other)
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    assert all(left >= 0 and right <= width and top >= 0 and bottom <= height for _, left, right, top, bottom in found)


def test_every_colour_has_its_counterpart_on_dark_paper():
    svg = picture(made("transformers", "modicum"))
    body = svg[svg.index("</style>") :]
    assert set(re.findall(r"#[0-9a-f]{6}", re.sub(r'(xlink:href="|url\()#\w+', "", body))) <= DARK.keys()
    style = svg[svg.index("<style>") : svg.index("</style>")]
    assert "prefers-color-scheme: dark" in style
    assert all(
        f'"{part}: {light}"] {{ {part}: {dark} !important }}' in style for light, dark in DARK.items() for part in ("fill", "stroke")
    )


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear))


def test_words_have_contrast_on_both_papers():
    contrast = lambda a, b: (max(luminance(a), luminance(b)) + 0.05) / (min(luminance(a), luminance(b)) + 0.05)
    for light, dark in DARK.items():
        if light != GRID:
            assert contrast(light, "#ffffff") > 4.5 and contrast(dark, "#14171b") > 4.5


def test_same_frontier_gives_same_picture_and_leaves_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    found = made("modicum")
    assert picture(found) == picture(made("modicum")) and page(found, picture(found)) == page(found, picture(found))
    assert dict(matplotlib.rcParams) == before
    assert "<dc:date>" not in picture(found) and found == made("modicum")


def test_page_tells_the_points_and_needs_nothing_else(read):
    found = made("transformers", "modicum")
    html = page(found, picture(found))
    seen = read(html)
    assert seen.open == [] and not seen.tags & {"script", "link", "img", "iframe", "object"}
    assert all(address.startswith("#") for address in seen.addresses) and "@import" not in html
    for said in (
        "models/toy",
        "Target transformers",
        "3 sizes as measured",
        "All 12 sizes as predicted",
        "Spearman r = 0.988",
        "1.3 1.17 to 1.56",
    ):
        assert said in seen.text, said


def test_page_without_rank_or_measured_points(read):
    found = made("modicum")
    found["rank"] = None
    for _, point in everything(found):
        point["chosen"]["measured"] = point["uniform"]["measured"] = None
    text = read(page(found, picture(found))).text
    assert "Spearman" not in text and "as measured" not in text and "All 12 sizes as predicted" in text


def test_names_are_text_never_markup(read):
    found = made(HOSTILE, "modicum", name=HOSTILE)
    found["curves"][0]["points"][0]["chosen"]["shares"] = {HOSTILE: 1.0}
    html = page(found, picture(found))
    assert "<script" not in html and HOSTILE in read(html).text
