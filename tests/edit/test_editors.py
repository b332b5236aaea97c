"""Laws that every editor keeps, on a tiny random model."""

import pytest
import torch

from modicum.core.errors import DataError, SettingError
from modicum.core.recipe import recipe, recipes
from modicum.edit.facts import Fact
from modicum.edit.judged import reached
from modicum.edit.rows import encoded
from modicum.edit.taught import Taught, answer_loss
from modicum.edit.teaching import taught
from modicum.edit.written import change
from modicum.train.changed import changed

FAST = {
    "finetune": "finetune steps=4",
    "kfac": "kfac rounds=2 steps=8 contexts=0 text=4",
    "ultraedit": "ultraedit rounds=4 contexts=1 text=1",
    "mend": "mend steps=40 rank=4 contexts=0 rate=0.01",
    **{name: f"{name} steps=8 contexts=0" for name in ("rome", "memit", "emmet", "alphaedit", "grace")},
}
each = pytest.mark.parametrize("method", [FAST.get(name, name) for name in sorted(recipes("edit"))])


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@each
def test_no_facts_no_change(pupil, method):
    assert not taught(pupil, [], method).changes and not pupil.asides


@each
def test_order_of_a_batch_and_the_run_change_nothing_and_nothing_is_left_behind(pupil, facts, method):
    before = {name: value.clone() for name, value in pupil.module.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in pupil.module.modules()]
    torch.manual_seed(1)
    first = dict(taught(pupil, facts[:3], method).changes)
    beside = pupil.asides
    pupil.changes, pupil.asides = {}, {}
    torch.manual_seed(2)
    again = taught(pupil, facts[2::-1], method).changes
    assert (first or beside) and all(bool(found.any()) for found in first.values()) and same(first, again)
    assert all(same(beside[place], pupil.asides[place]) for place in beside)
    assert same(before, pupil.module.state_dict()) and hooks == [len(module._forward_hooks) for module in pupil.module.modules()]
    assert all(parameter.requires_grad for parameter in pupil.module.parameters()) and not pupil.module.training


@each
def test_the_loss_of_the_facts_falls(pupil, facts, method):
    rows = encoded(pupil.tokenizer, facts[:3], 32)
    loss = lambda: float(answer_loss(pupil.logits(rows), rows).mean())
    with torch.no_grad(), pupil.computing():
        before = loss()
    taught(pupil, facts[:3], method)
    with torch.no_grad(), pupil.computing():
        assert loss() < before


def test_a_change_is_the_smaller_of_a_product_and_itself(pupil, facts):
    taught(pupil, facts[:1], "rome steps=2 contexts=0")
    dtypes = dict.fromkeys(pupil.changes, torch.float32)
    delta = change(pupil, dtypes)
    ((name, form),) = delta.forms.items()
    base = pupil.module.get_parameter(name).detach()
    assert form.parts[1].kind == "low_rank" and form.parts[1].rank == 1
    assert torch.allclose(delta.weight(name, base), base + pupil.changes[name], atol=1e-6)


def test_what_a_pupil_is_taught_it_says(pupil, facts):
    taught(pupil, facts, "ultraedit rounds=60 rate=3 text=0.1 contexts=0 guards=0")
    with torch.no_grad(), pupil.computing():
        assert all(reached(pupil, facts))


def test_batches_one_after_the_other_keep_what_was_before(pupil, facts):
    taught(pupil, facts, "ultraedit rounds=60 rate=3 text=0.1 contexts=0 guards=0", batch=2)
    with torch.no_grad(), pupil.computing():
        assert sum(reached(pupil, facts)) >= 5


def test_a_codebook_answers_its_facts_and_leaves_text_the_same_bits(pupil, facts):
    with torch.no_grad():
        before = pupil.module(input_ids=pupil.sequences).logits
    taught(pupil, facts, "grace steps=60", batch=3)
    with torch.no_grad(), pupil.computing():
        assert sum(reached(pupil, facts)) >= 5 and torch.equal(pupil.module(input_ids=pupil.sequences).logits, before)
    delta = change(pupil, {name: parameter.dtype for name, parameter in pupil.module.named_parameters()})
    assert not delta.forms and len(delta.asides) == 1
    with changed(pupil.module, delta):
        plain = Taught(pupil.module, pupil.tokenizer, pupil.layers, pupil.blocks, pupil.sequences)
        assert sum(reached(plain, facts)) >= 5, "the delta is what answers"


def test_a_network_that_was_trained_writes_more_of_the_fact_than_one_that_was_not(pupil, facts):
    rows = encoded(pupil.tokenizer, facts[:1], 32)
    lost = {}
    for steps in (1, 60):
        pupil.changes = {}
        taught(pupil, facts[:1], f"mend steps={steps} rank=4 contexts=0 rate=0.01")
        with torch.no_grad(), pupil.computing():
            lost[steps] = float(answer_loss(pupil.logits(rows), rows).mean())
    assert lost[60] < 0.8 * lost[1]


def test_facts_held_on_text_are_said_and_text_diverges_less(pupil, facts):
    apart = {}
    with torch.no_grad():
        old = pupil.module(input_ids=pupil.sequences).logits.log_softmax(-1)
    for hold in (0, 200):
        pupil.changes = {}
        taught(pupil, facts[:4], f"kfac rounds=3 steps=20 contexts=0 hold={hold}")
        with torch.no_grad(), pupil.computing():
            assert all(reached(pupil, facts[:4]))
            new = pupil.module(input_ids=pupil.sequences).logits.log_softmax(-1)
        apart[hold] = float((old.exp() * (old - new)).sum(-1).mean())
    assert apart[200] < 0.5 * apart[0]


def test_a_limit_bounds_every_entry(pupil, facts):
    taught(pupil, facts[:2], "finetune steps=6 rate=0.01 limit=0.02")
    assert max(float(found.abs().max()) for found in pupil.changes.values()) == pytest.approx(0.02)


def test_slips_are_said_in_a_sentence(pupil, facts):
    with pytest.raises(SettingError, match="'memt': is not one of edit. Did you mean memit"):
        recipe("edit", "memt")
    with pytest.raises(SettingError, match="must match a layer"):
        taught(pupil, facts[:1], "rome layers=nothing")
    with pytest.raises(DataError, match=r"fact 1 must have a target of 1 to 32 tokens, has \d+"):
        taught(pupil, [Fact("a", "long " * 40, where="fact 1")], "rome")
    assert not pupil.changes
