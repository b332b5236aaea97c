"""One option everywhere: judged once by its real divergence, held against every choice, and taken where it loses less."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import modicum
from modicum.core.budget import Budget
from modicum.core.option import KEEP, Option
from modicum.fit.choose import Chooser
from modicum.fit.request import Request
from modicum.judge.plain import plains, try_all
from modicum.measure import Measured, measure
from modicum.measure.measured import _hash
from modicum.measure.settings import Settings, common
from modicum.measure.subject import Subject
from modicum.table.findings import DEPTH, Findings
from modicum.table.menu import default_menu
from modicum.testing import zoo

MENU = "nearest bits=2 group=32,nearest bits=3 group=32,nearest bits=8 group=32,ziplm keep=0.5,blocks"
TWO, THREE, EIGHT = (f"nearest bits={bits} group=32" for bits in (2, 3, 8))


@pytest.fixture(scope="module")
def llama():
    return zoo.build("llama")


@pytest.fixture(scope="module")
def known(llama, tmp_path_factory):
    return measure(llama[0], out=tmp_path_factory.mktemp("measured") / "m", data=llama[1], menu=MENU)


def chooser(llama, known, **words):
    budget = {name: words.pop(name) for name in ("size", "bpw", "params", "loss", "memory") if name in words}
    request = Request(budget=Budget.of(**budget), **common(menu=MENU, **words))
    return Chooser(Subject.open(llama[0], request, data=known.splits), "modicum", request)


def uneven():
    """A decoder whose rows, of 72 and 80, neither 64 nor 32 divides."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=72, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=6,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    batches = [{"input_ids": torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(turn))} for turn in range(6)]
    return LlamaForCausalLM(config).eval(), batches


# What is plain


def test_a_plain_option_is_what_the_same_method_would_apply(llama):
    subject = Subject.open(llama[0], Settings(), llama[1])
    for name in ("transformers", "modicum"):
        sizing = subject.sizing(name)
        table = sizing.table()
        found = plains(sizing.target, sizing.menu, table)
        assert found
        for text, picks in found.items():
            assert table.consistent(picks) and all(table.choices[site][picks[site]].option == KEEP for site in table.children)
            for site in sizing.target.sites():
                fitted = sizing.target.adapt(site, Option.parse(text))
                fitted = fitted if fitted is not None and all(step.saves(site) for step in fitted.steps) else None
                assert table.choices[site.name][picks[site.name]].option == (KEEP if fitted is None else str(fitted))


def test_cuts_and_low_rank_forms_are_no_plain_options(llama):
    subject = Subject.open(llama[0], Settings(**common(menu="svd keep=0.5,ziplm keep=0.5,blocks,nearest bits=4 group=32")), llama[1])
    sizing = subject.sizing("modicum")
    assert list(plains(sizing.target, sizing.menu, sizing.table())) == ["nearest bits=4 group=32"]


def test_where_rows_need_other_groups_there_is_a_plain_option_of_each_width():
    model, batches = uneven()
    subject = Subject.open(model, Settings(), batches)
    target = subject.target("transformers")
    table = subject.sizing("transformers").table()
    found = plains(target, default_menu(target, None), table)
    picks = found["gptq bits=4 symmetric=true group=36 or 40"]
    options = {table.choices[site][index].option for site, index in picks.items() if site not in table.children}
    assert options == {"gptq bits=4 group=36 symmetric=true", "gptq bits=4 group=40 symmetric=true"}


# Judged once


def test_a_measurement_keeps_what_each_plain_option_loses_for_every_target(llama, known):
    assert set(known.findings.plain) == {"transformers", "modicum"}
    tried = known.findings.plain["modicum"]
    assert set(tried) == {TWO, THREE, EIGHT}
    for one in tried.values():
        assert one.low <= one.mean <= one.high and one.mean == pytest.approx(np.mean(one.rows)) and len(one.rows) > 0
    assert tried[TWO].mean > tried[THREE].mean > tried[EIGHT].mean
    assert tried[TWO].bytes < tried[THREE].bytes < tried[EIGHT].bytes


def test_what_was_judged_is_what_the_method_writes(llama, known):
    result = modicum.fit(llama[0], measured=known, method=THREE, target="modicum")
    tried = known.findings.plain["modicum"][THREE]
    assert result.receipt["bytes"]["actual"] == tried.bytes
    module = modicum.load(result.out)
    lost = []
    for batch in known.splits.validation:
        with torch.no_grad():
            p, q = (one(**batch).logits.log_softmax(-1) for one in (llama[0], module))
        lost += (p.exp() * (p - q)).sum(-1).mean(-1).tolist()
    assert tried.rows == pytest.approx(lost[: len(tried.rows)], rel=1e-3)


def test_a_measurement_of_an_earlier_version_is_read_without(llama, known, tmp_path):
    for path in known.directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    body = json.loads((tmp_path / "findings.json").read_text())
    del body["plain"]
    (tmp_path / "findings.json").write_text(json.dumps(body))
    (tmp_path / "measurement.json").write_text(json.dumps(known.meta | {"hash": _hash(tmp_path, known.meta)}))
    older = Measured.read(tmp_path)
    assert not older.findings.plain and Findings.from_json(older.findings.to_json()) == older.findings
    told = modicum.fit(llama[0], measured=older, bpw=5, target="modicum").receipt["search"]["plain"]
    assert told["sequences"] == 0  # held against a forecast


def test_where_time_is_short_the_smallest_are_judged():
    found, sizes = {"large": {"a": 1}, "small": {"a": 0}}, {"large": 200, "small": 100}
    judge = Says(lambda picks: 0.5 - 0.1 * picks["a"])
    assert list(try_all(found, sizes, judge, 0, 0.0)) == ["small"]
    every = try_all(found, sizes, judge, 0, 60.0)
    assert (every["small"].mean, every["large"].mean, every["large"].bytes) == (0.5, pytest.approx(0.4), 200)


# Held against


class Says:
    """A judge by which every selection loses what ``lost`` says."""

    samples = 4

    def __init__(self, lost):
        self.lost = lost

    def prepare(self, candidates):
        """Nothing has to be made."""

    def __call__(self, picks, samples):
        return np.full(samples, self.lost(picks))


def option_shares(table, picks):
    return {table.choices[site][index].option for site, index in picks.items() if site not in (*table.children, DEPTH)}


def test_a_choice_that_loses_more_than_a_plain_option_gives_way_to_it_and_an_event_says_so(llama, known):
    one = chooser(llama, known, bpw=6, allocator="integer_program")
    table = one.table(known.findings)
    plain = lambda picks: len(option_shares(table, picks)) == 1
    picks = one.choose(table, known.findings, Says(lambda picks: 0.1 if plain(picks) else 0.9))
    assert option_shares(table, picks) == {THREE}
    (event,) = one.report["events"]
    assert "loses 0.1 on 4 validation sequences, what integer_program chose 0.9; the plain option is taken" in event
    told = one.report["plain"]
    assert told["taken"] and told["option"] == THREE and told["bytes"] <= one.limits()["bytes"]


def test_a_choice_that_loses_less_stays_and_the_receipt_says_what_the_plain_option_loses(llama, known):
    one = chooser(llama, known, bpw=6, allocator="integer_program")
    table = one.table(known.findings)
    picks = one.choose(table, known.findings, Says(table.harm))
    assert len(option_shares(table, picks)) > 1 and not one.report["events"]
    assert not one.report["plain"]["taken"] and one.report["plain"]["chosen"] < one.report["plain"]["lost"]


def test_what_a_plain_option_leaves_of_the_budget_is_spent_where_that_helps(llama, known):
    one = chooser(llama, known, bpw=6, allocator="random")
    table = one.table(known.findings)
    worse = one.choose(table, known.findings, None)  # random, whose forecast is known
    picks = one.choose(table, known.findings, Says(lambda picks: 9.0 if picks == worse else table.harm(picks)))
    assert {THREE} < option_shares(table, picks) and one.exact_bytes(table, picks, known.findings) <= one.limits()["bytes"]


def test_a_budget_that_no_plain_option_fits_names_none(llama, known):
    one = chooser(llama, known, bpw=2.5)
    table = one.table(known.findings)
    one.choose(table, known.findings, None)
    assert not one.rivals(table, known.findings) and "plain" not in one.report


# Each allocator and each budget once in the short form, all pairs in the long one.
WITHIN = [("modicum", 3.7), ("modicum", 9), ("transformers", 13)]
SHORT = [("integer_program", *WITHIN[0]), ("uniform", *WITHIN[1]), ("random", *WITHIN[2]), ("dynamic_program", *WITHIN[0])]
PAIRS = [(name, *within) for name in ("integer_program", "uniform", "random", "dynamic_program") for within in WITHIN]


@pytest.mark.parametrize("allocator, target, bpw", [pytest.param(*pair, marks=[] if pair in SHORT else pytest.mark.slow) for pair in PAIRS])
def test_from_a_measurement_no_choice_is_worse_than_a_plain_option(llama, known, allocator, target, bpw):
    """Held against what the plain option was measured to lose, on the same sequences, once the choice is made."""
    result = modicum.fit(llama[0], measured=known, target=target, bpw=bpw, allocator=allocator)
    fitting = [one for one in known.findings.plain[target].values() if one.bytes <= result.receipt["bytes"]["allowed"]]
    told = result.receipt["search"].get("plain")
    assert bool(fitting) == bool(told)
    if told:
        assert told["sequences"] and told["lost"] == pytest.approx(min(one.mean for one in fitting))
        assert told["taken"] == (told["lost"] < told["chosen"])
        assert told["taken"] == any("the plain option is taken" in event for event in result.receipt["events"])
        assert result.receipt["bytes"]["actual"] == told["bytes"] or not told["taken"]


def test_a_loss_budget_takes_a_smaller_plain_option_that_keeps_it(llama, known, monkeypatch):
    one = chooser(llama, known, loss=0.5, search_time=0.0)
    table = one.table(known.findings)
    monkeypatch.setattr(one, "_rise", lambda picks, judge: 0.0 if option_shares(table, picks) in ({TWO}, {EIGHT}) else 0.49)
    monkeypatch.setattr(one, "_smallest", lambda *_: table.cost(table.best(lambda _, choice: (choice.harm,))))
    picks = one.choose(table, known.findings, Says(table.harm))
    assert option_shares(table, picks) == {TWO}
    assert "keeps the loss too" in one.report["events"][0]


def test_a_forecast_stands_in_where_nothing_is_judged(llama):
    """An allocator that chooses badly is found out by the table, and the receipt says that nothing was judged."""
    receipt = modicum.fit(llama[0], bpw=4, data=llama[1], menu=MENU, target="modicum", allocator="random", search_time=0).receipt
    told = receipt["search"]["plain"]
    assert told["sequences"] == 0 and told["taken"] == (told["lost"] < told["chosen"])
    assert receipt["predicted_harm"] == pytest.approx(min(told["lost"], told["chosen"]))


def test_single_numbers_are_held_against_plain_options_too():
    """Outputs that are values have no divergence in nats; their relative errors are compared."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    batches = [(torch.randn(8, 64, generator=torch.Generator().manual_seed(turn)),) for turn in range(6)]
    result = modicum.fit(model, bpw=6, data=batches, menu=MENU, allocator="random", search_time=5)
    told = result.receipt["search"]["plain"]
    assert told["sequences"] > 0 and told["taken"] == (told["lost"] < told["chosen"])
    assert result.receipt["quality"]["metric"] == "relative squared error"
