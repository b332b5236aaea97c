"""Choosing within budgets of every kind: what holds, what is refused and in which words, and what a search is allowed."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import modicum
from modicum.allocate import ALLOCATORS, JUDGED
from modicum.core.budget import Budget, readable
from modicum.core.errors import BudgetError
from modicum.core.progress import Quiet
from modicum.fit import choose as choosing
from modicum.fit import choosing as running
from modicum.fit.assemble import Assembly
from modicum.fit.choose import Chooser
from modicum.fit.request import Request
from modicum.judge.judge import Levels, PlanJudge
from modicum.measure import measure
from modicum.measure.settings import common
from modicum.measure.subject import Subject
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Findings
from modicum.table.sizing import Sizing
from modicum.testing import zoo

MENU = "nearest bits=2 group=32,nearest bits=3 group=32,nearest bits=8 group=32,ziplm keep=0.5,blocks"


@pytest.fixture(scope="module")
def llama():
    return zoo.build("llama")


@pytest.fixture(scope="module")
def known(llama, tmp_path_factory):
    return measure(llama[0], out=tmp_path_factory.mktemp("measured") / "m", data=llama[1], menu=MENU)


def chooser(llama, known, **words):
    """A chooser for our container, with the budgets named."""
    budget = {name: words.pop(name) for name in ("size", "bpw", "params", "loss", "memory", "speed", "latency") if name in words}
    request = Request(budget=Budget.of(**budget), **common(menu=MENU, **words))
    return Chooser(Subject.open(llama[0], request, data=known.splits), "modicum", request)


def judged(chooser, table, known, directory):
    subject = chooser.subject
    levels = Levels(directory, chooser.sizing, known.findings, subject.data.calibration, SpillPool(None, None), 0)
    return PlanJudge(table, levels, subject.data.validation, subject.model.is_causal)


def fit(llama, known, **words):
    return modicum.fit(llama[0], measured=known, **{"target": "modicum", "search_time": 0, **words})


# What holds


def test_stored_values_are_within_a_share_and_counted_as_stored(llama, known, picks_of):
    result = fit(llama, known, params="60%")
    values = result.receipt["values"]
    assert values["actual"] <= 0.6 * values["original"] == 0.6 * result.source.parameters
    table = chooser(llama, known, params="60%").table(known.findings)
    assert values["actual"] == table.cost(picks_of(result.plan, table), "values")
    assert result.receipt["bytes"]["allowed"] is None


def test_several_budgets_all_hold(llama, known):
    result = fit(llama, known, bpw=5, size="80kB", params="75%")
    assert result.receipt["bytes"]["actual"] <= result.receipt["bytes"]["allowed"] == 80_000
    assert result.receipt["values"]["actual"] <= 0.75 * result.source.parameters


def test_memory_holds_what_a_cut_leaves(llama, known):
    words = {"memory": "500kB", "context": 16}
    whole = chooser(llama, known, **words)
    table = whole.table(known.findings)
    most = 500_000 - whole.runtime.overhead()
    keep = {site: 0 for site in table.choices}
    assert table.cost(keep, "memory") > most  # bits do not help: all are held dense
    chosen = whole.choose(table, known.findings, None)
    assert table.cost(chosen, "memory") <= most
    smaller = [
        site for site, index in chosen.items() if site in table.children and table.choices[site][index].option not in ("keep", "gone")
    ]
    assert smaller


def test_bytes_told_are_those_written(llama, known, picks_of):
    for bpw in (2.5, 4.0):
        one = chooser(llama, known, bpw=bpw)
        table = one.table(known.findings)
        result = fit(llama, known, bpw=bpw)
        assert one.exact_bytes(table, picks_of(result.plan, table), known.findings) == result.receipt["bytes"]["actual"]


def test_what_the_header_held_back_is_spent(llama, known):
    """The table's sizes are upper bounds; choosing again with the true ones never makes the plan worse."""
    better = 0
    for bpw in np.linspace(2.5, 7.0, 5):
        one = chooser(llama, known, bpw=float(bpw), allocator="integer_program")
        table, limits = one.table(known.findings), one.limits()
        plain, chosen = ALLOCATORS["integer_program"](table, limits), one.choose(table, known.findings, None)
        assert one.exact_bytes(table, chosen, known.findings) <= limits["bytes"]
        assert table.harm(chosen) <= table.harm(plain)
        better += table.harm(chosen) < table.harm(plain)
    assert better


# Loss


class Foretold:
    """A judge by which a selection loses what the table says, so that the answer is known."""

    samples = 2

    def __init__(self, table):
        self.table = table

    def quality(self, picks, samples):
        return SimpleNamespace(original=[2.0] * samples, candidate=[2.0 + self.table.harm(picks)] * samples)


def test_loss_gives_the_smallest_that_holds(llama, known):
    sizes = []
    for share in (0.01, 0.2):
        one = chooser(llama, known, loss=share, search_time=0.0)
        table = one.table(known.findings)
        chosen = one.choose(table, known.findings, Foretold(table))
        assert np.expm1(table.harm(chosen)) <= share
        sizes.append(one.exact_bytes(table, chosen, known.findings))
        # Half a hundredth less does not hold.
        assert np.expm1(table.harm(ALLOCATORS["integer_program"](table, {"bytes": 0.995 * sizes[-1]}))) > share
    assert sizes[1] < sizes[0]


def test_a_search_never_loses_more_than_allowed(llama, known, monkeypatch):
    """An allocator that exchanges what holds for something smaller and worse is not followed."""
    one = chooser(llama, known, loss=0.05, search_time=0.0)
    table = one.table(known.findings)
    monkeypatch.setitem(choosing.ALLOCATORS, "auto", lambda table, *_, **__: table.cheapest())
    monkeypatch.setattr(choosing, "fill", lambda table, picks, limits: picks)
    chosen = one.choose(table, known.findings, Foretold(table))
    assert np.expm1(table.harm(table.cheapest())) > 0.05 >= np.expm1(table.harm(chosen))


def test_loss_is_reported_on_test_text(llama, known):
    result = fit(llama, known, loss="5%")
    assert result.receipt["request"]["budget"] == "loss 5 %"
    assert {"perplexity", "perplexity_original"} <= result.receipt["quality"].keys()
    assert result.receipt["bytes"]["actual"] < 0.6 * result.receipt["bytes"]["original"]


def test_loss_needs_perplexity(tmp_path):
    model, batches = zoo.build("mlp")
    with pytest.raises(modicum.ModelError, match=r"--loss: needs perplexity, .* is no causal language model\. Pass another budget\."):
        modicum.fit(model, loss="1%", data=batches, menu="nearest bits=8 group=32")


def test_loss_within_too_small_a_size_is_told(llama, known):
    one = chooser(llama, known, loss="0.1%", size="46kB")
    table = one.table(known.findings)
    with pytest.raises(
        BudgetError, match=r"at 46\.000 kB, the most the other budgets allow, perplexity rises by .* %\. Allow more loss, or"
    ):
        one.choose(table, known.findings, Foretold(table))


# What cannot be


@pytest.mark.parametrize(
    "words, sentence",
    [
        ({"size": "20kB"}, r"budget 20\.000 kB: 20\.000 kB cannot be reached, the smallest for target modicum and this menu is .* bpw\)"),
        ({"bpw": 8, "keep": ["lm_head"], "size": "30kB"}, r"with --keep is .*Keep less, or allow more bytes\."),
        ({"params": "20%"}, r"the smallest for target modicum and this menu is \d\d\.\d % of the values\. Allow more, or add options"),
        ({"memory": "150kB", "context": 64}, r"of it cache and activations\. Only cuts .* shorter --context or smaller --batch\."),
        ({"size": "2MB", "params": "20%"}, r"budget 2\.000 MB and 20 % of parameters: cannot be reached"),
    ],
)
def test_what_cannot_be_reached_is_one_sentence_with_a_way_out(llama, known, words, sentence):
    with pytest.raises(BudgetError) as caught:
        fit(llama, known, **words)
    assert re.search(sentence, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_budgets_that_only_together_cannot_be_are_told(llama, tmp_path):
    """Few values mean low rank, few bytes mean few bits; no option is both."""
    menu = "nearest bits=2 group=32,svd keep=0.25"
    request = lambda **words: Request(budget=Budget.of(**words), **common(menu=menu))
    subject = Subject.open(llama[0], request(bpw=1.0), llama[1])
    table = Chooser(subject, "modicum", request(bpw=1.0)).table(None)
    least = {resource: table.cost(table.cheapest({resource: 1.0}), resource) for resource in ("bytes", "values")}
    words = {"size": int(1.05 * least["bytes"]), "params": 1.05 * least["values"] / subject.model.parameters}
    for name, value in words.items():
        alone = Chooser(subject, "modicum", request(**{name: value}))
        alone.check(alone.table(None))
    both = Chooser(subject, "modicum", request(**words))
    with pytest.raises(BudgetError, match=r"each part can be reached alone, not all together\. Relax bytes or values\."):
        both.check(both.table(None))


def test_another_target_is_named_where_it_helps(llama, known):
    with pytest.raises(
        BudgetError, match=r"model\.embed_tokens\.weight .* stays dense there\. --target modicum reaches it: its smallest is"
    ):
        fit(llama, known, target="transformers", bpw=4)


# Time


class SlowClock:
    """A runtime in which a weight takes a microsecond a value, and everything else a millisecond."""

    packed = False

    def pricing(self, timed):
        return lambda unit, form: (0, 1e-6 * form.shape[0] * form.shape[1] * _left(form))

    def rest(self):
        return 1e-3

    def block_rest(self, block):
        return 1e-4

    def original(self):
        return 1e-3 + 1e-6 * 143_000


def _left(form):
    inner = getattr(form, "inner", form)
    return inner.shape[0] * inner.shape[1] / (form.shape[0] * form.shape[1])


@pytest.mark.parametrize("words", [{"speed": 1.5}, {"latency": 0.1}])
def test_time_is_a_limit_like_any_other(llama, known, monkeypatch, words):
    monkeypatch.setattr(Subject, "runtime", lambda *_: SlowClock())
    one = chooser(llama, known, **words, bpw=20)
    table = one.table(known.findings)
    most = words.get("latency", SlowClock().original() / 1.5)
    assert one.limits()["seconds"] == pytest.approx(most)
    chosen = one.choose(table, known.findings, None)
    assert table.cost(chosen, "seconds") <= most < table.cost({site: 0 for site in table.choices}, "seconds")
    with pytest.raises(BudgetError, match=r"the smallest for target modicum and this menu is \d+\.\d+ ms of 144\.000\. Only cuts"):
        impossible = chooser(llama, known, latency=0.002)
        impossible.check(impossible.table(known.findings))


# Searching


class Told(Quiet):
    """What whoever watches a run is told."""

    def __init__(self):
        self.lines = []

    def start(self, stage, total):
        self.lines.append(stage)

    def say(self, line):
        self.lines.append(line)


def test_from_a_measurement_the_table_is_made_once_and_the_choice_is_told_as_it_is_made(llama, known, monkeypatch):
    made, told, table = [], Told(), Sizing.table
    monkeypatch.setattr(Sizing, "table", lambda sizing, findings=None: made.append(sizing.target.name) or table(sizing, findings))
    result = fit(llama, known, bpw=4, progress=told)
    assert made.count("modicum") == 1
    chosen = next(place for place, line in enumerate(told.lines) if line.startswith("chosen: "))
    assert told.lines[chosen - 1] == "choose" and "assemble" in told.lines[chosen + 1 :]
    assert readable(result.receipt["bytes"]["actual"]) in told.lines[chosen]


def test_no_time_to_search_is_no_judge(llama, known, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("judged")

    monkeypatch.setattr("modicum.fit.choosing.PlanJudge", refuse)
    monkeypatch.setattr("modicum.fit.choosing.Levels", refuse)
    told = fit(llama, known, bpw=4).receipt["search"]
    assert "evaluations" not in told and told["allocator"] == "integer_program"  # what auto is without a judge
    assert told["rank"] == known.findings.rank and told["rank"]["plans"] == 30


def test_auto_is_not_worse_than_the_integer_program_where_it_judges(llama, known, tmp_path):
    one = chooser(llama, known, bpw=3)
    table, limits = one.table(known.findings), one.limits()
    judge = judged(one, table, known, tmp_path)
    auto, program = (ALLOCATORS[name](table, limits, judge) for name in ("auto", "integer_program"))
    assert table.fits(auto, limits)
    assert judge(auto, judge.samples).mean() <= judge(program, judge.samples).mean()


def test_a_search_is_told_in_the_receipt(llama, known, monkeypatch):
    monkeypatch.setattr(running, "too_slow", lambda *_: "")  # however busy the machine is
    result = fit(llama, known, bpw=3, search_time=1.0)
    told = result.receipt["search"]
    assert told["allocator"] == "auto" and told["evaluations"] >= 1 and told["seconds"] > 0
    assert "skipped" not in told and "choose" in result.receipt["stages"]
    assert result.receipt["bytes"]["actual"] <= result.receipt["bytes"]["allowed"]


def test_a_search_that_would_be_too_short_is_left_out_and_named(llama, known):
    result = fit(llama, known, bpw=4, search_time=1e-6)
    assert re.fullmatch(r"judging a candidate on one sequence takes about .* s, 1e-06 s are allowed", result.receipt["search"]["skipped"])
    (event,) = [event for event in result.receipt["events"] if event.startswith("search: left out")]
    assert "integer program's answer stands. Pass a longer --search-time." in event
    assert result.plan.options == fit(llama, known, bpw=4).plan.options


def test_an_interrupted_run_keeps_what_it_chose(llama, known, tmp_path, monkeypatch):
    """A search that time ends would not end alike again, so it is not made again."""
    words = {"bpw": 3, "search_time": 1.0, "out": tmp_path / "out"}
    monkeypatch.setattr(running, "too_slow", lambda *_: "")  # however busy the machine is
    with monkeypatch.context() as patch:
        patch.setattr(Assembly, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(llama, known, **words)
    assert (tmp_path / "out.partial" / "choice.json").exists() and not (tmp_path / "out.partial" / "levels").exists()
    plan = (tmp_path / "out.partial" / "plan.json").read_bytes()

    def refuse(*_, **__):
        raise AssertionError("searched again")

    monkeypatch.setitem(choosing.ALLOCATORS, "auto", refuse)
    result = fit(llama, known, **words)
    assert (result.out / "plan.json").read_bytes() == plan
    assert result.receipt["search"]["evaluations"] >= 1


def test_every_allocator_serves_a_measurement(llama, known):
    """Those that need a curvature nobody measured say so; nothing else fails."""
    harms = {}
    for name in sorted(ALLOCATORS):
        one = chooser(llama, known, bpw=4, allocator=name)
        table = one.table(known.findings)
        if name in JUDGED - {"auto"}:
            continue
        try:
            picks = one.choose(table, known.findings, None)
        except modicum.SettingError as error:
            assert "Measure with --curvature" in str(error)
            continue
        assert table.consistent(picks) and one.exact_bytes(table, picks, known.findings) <= one.limits()["bytes"]
        harms[name] = table.harm(picks)
    assert len(harms) >= 4 and min(harms.values()) == pytest.approx(harms["integer_program"], rel=1e-9)
    assert Findings.from_json(known.findings.to_json()) == known.findings
