"""The page of a receipt in a browser: its slider, its map, its names, and that it fits a phone."""

import re
import shutil

import pytest

from modicum.receipt import report
from modicum.receipt.changes import edited, forgotten

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    """A browser without a window. Skips where there is none, or nothing that drives it."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium is on the path: apt-get install chromium")
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def html(chosen):
    judged = {"before": 0.13635, "after": 0.12765, "change": -0.0087, "interval": [-0.01153, -0.00547], "sequences": 1024}
    healed = {"trained": 119040, "with": "norms, held", "losses": [0.3, 0.2, 0.1], "batch": 8, "seconds": 20.0, "taken": True}
    return report({**chosen, "healing": {**healed, "validation": judged, "test": judged}})


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a page from disk; afterwards no error was told, and nothing but the page itself was asked for."""
    said, asked, pages = [], [], []

    def visit(html, width=1100, **how):
        path = tmp_path / "report.html"
        path.write_text(html, encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 800}, **how)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        pages.append(path.as_uri())
        return page

    visit.said = said
    yield visit
    assert said == []
    assert asked == pages


def cell(page, name):
    return page.get_by_role("gridcell", name=re.compile(rf"^{re.escape(name)}:"))


def test_the_slider_changes_the_plan_that_is_shown(visit, html):
    page = visit(html)
    shown, spent = page.locator("#shown"), page.locator("#spent tr")
    slider = page.get_by_role("slider")
    assert "10.000 kB" in shown.inner_text() and "loses 0.032 (small)" in shown.inner_text()
    assert cell(page, "model.layers.1.mlp.up").inner_text() == "4"
    before = page.locator(".wide .here").get_attribute("cx")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert "8.000 kB" in shown.inner_text() and "expected to lose 0.16 (large)" in shown.inner_text()
    assert "0.16 (large)" in slider.get_attribute("aria-valuetext")
    assert cell(page, "model.layers.1.mlp.up").inner_text() == "2" and "gptq bits=2" in spent.first.inner_text() + spent.nth(1).inner_text()
    assert float(page.locator(".wide .here").get_attribute("cx")) < float(before)
    page.keyboard.press("End")
    assert cell(page, "model.layers.1.mlp.up").get_attribute("class") == "kept"
    page.get_by_role("button", name="This result").click()
    assert "loses 0.032" in shown.inner_text() and slider.input_value() == "2"


def test_the_map_is_read_with_the_keyboard_alone(visit, html):
    page = visit(html)
    told = page.locator("#told")
    page.locator("#own").focus()
    page.locator("[role=gridcell][tabindex='0']").focus()
    assert told.inner_text().startswith(
        "model.layers.0.attn.q: gptq bits=4, 4.00 bits per weight, 500 bytes, 0.25 bits beyond the reference"
    )
    for key, name in (
        ("ArrowRight", "layers.1.attn.q"),
        ("ArrowDown", "layers.1.mlp.up"),
        ("End", "layers.3.mlp.up"),
        ("ArrowDown", "all blocks:ffn"),
    ):
        page.keyboard.press(key)
        assert name in told.inner_text(), key
    assert cell(page, "all blocks:ffn").inner_text() == "50%"
    assert page.locator("[role=gridcell][tabindex='0']").count() == 1  # one stop of the tab key
    page.get_by_role("radio", name="bits beyond the reference").check()
    assert cell(page, "model.layers.3.mlp.up").inner_text() == "0.3" and cell(page, "model.layers.3.mlp.up").get_attribute("class") == "c2"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_whole_with_words_that_can_be_read(visit, html, scheme):
    page = visit(html, width=390, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for chart in page.locator(".narrow svg").all():
        assert chart.is_visible()
        heights = chart.evaluate("svg => [...svg.querySelectorAll('text')].map(text => text.getBoundingClientRect().height)")
        assert min(heights) > 8
    assert page.locator(".narrow svg").count() == 3 and not any(wide.is_visible() for wide in page.locator(".wide svg").all())
    narrowest = page.evaluate("Math.min(...[...document.querySelectorAll('table th:first-child')].map(part => part.offsetWidth))")
    assert narrowest > 60  # a name does not break into single letters
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


def test_what_can_be_used_has_a_name(visit, html):
    page = visit(html)
    tree = page.locator("body").aria_snapshot()
    for said in (
        'slider "Size: a plan of the frontier"', 'button "This result"', 'grid "Map of the model', 'radio "bits per weight" [checked]',
        'heading "toy"',
        'img "Expected loss of 5 plans', 'img "Relative error of the output of 4 blocks',
        'region "Verdict"', 'rowheader "attn.q"', 'gridcell "model.layers.0.attn.q: gptq bits=4',
    ):  # fmt: skip
        assert said in tree, tree


def test_what_a_chart_shows_is_reached_with_the_keyboard_in_numbers(visit, html):
    page = visit(html)
    numbers = page.get_by_text("4 blocks in numbers")
    numbers.focus()
    page.keyboard.press("Enter")
    assert (
        page.get_by_role("cell", name="model.layers.3", exact=True).is_visible() and page.get_by_role("cell", name="40.00 %").is_visible()
    )


def test_a_page_runs_no_script_but_its_own(visit, html):
    html = html.replace("<main>", "<main><script>document.title = 'other'</script>")
    page = visit(html)
    title = page.title()
    assert title.startswith("toy at") and "10.000 kB" in page.locator("#shown").inner_text()
    (refused,) = visit.said
    assert "Content Security Policy" in refused
    visit.said.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("page", ["edited", "forgotten"])
def test_pages_of_changes_fit_a_screen_and_a_phone(visit, taught, lost, page, width, scheme):
    opened = visit(edited(taught) if page == "edited" else forgotten(lost), width, color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"
    assert opened.locator(".chart svg:visible").count() == (1 if page == "edited" else 2)
    colours = opened.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert (sum(map(int, re.findall(r"\d+", colours[0]))) > sum(map(int, re.findall(r"\d+", colours[1])))) == (scheme == "dark")
