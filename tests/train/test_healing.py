"""Healing of forms: what may be trained, in the same bytes, to the same losses after a kill, and no further than numbers go."""

import copy

import pytest
import torch
from tests.train.killed import Killed

from modicum.core.errors import SettingError
from modicum.core.option import Option
from modicum.core.progress import Quiet
from modicum.core.unit import Site, Stats
from modicum.forms import Dense, Masked
from modicum.models.trainable import trainable
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.healing import chosen, heal, healers
from modicum.train.loop import evaluate, single
from modicum.train.objectives import distillation

LOOP = Loop(steps=6, batch=4, rate=0.01, every=2)


def compressed(option="nearest bits=2"):
    """A small model, a copy that computes with forms, these, and its vectors."""
    teacher, batches = zoo.build("llama")
    student, forms = copy.deepcopy(teacher), {}
    for name, unit in trainable(student).items():
        if unit.kind == "linear" and "layers" in name:
            weight = student.get_parameter(name)
            made = Option.parse(option).apply(Site(name, "unit", (unit,)), {name: Stats()}, {name: Dense(weight.detach())})
            forms[name] = made.forms[name]
            weight.data = forms[name].dense()
    vectors = {name: value.detach() for name, value in student.named_parameters() if value.ndim == 1}
    return teacher.requires_grad_(False), student.requires_grad_(False), forms, vectors, batches


def run(found, loop=LOOP, methods="norms, held", **words):
    teacher, student, forms, vectors, batches = found
    return heal(student, forms, vectors, batches, distillation(teacher, top=words.pop("top", 0)), loop, healers(methods), **words)


@pytest.mark.parametrize("option", ["nearest bits=2", "magnitude keep=0.5"])
@pytest.mark.parametrize("methods", ["norms, held", "norms, held rank=2", "norms", "scales codes=true, held"])
def test_a_model_answers_more_as_its_original_in_the_same_bytes(option, methods):
    found = compressed(option)
    before = copy.deepcopy([module.state_dict() for module in found[:2]])
    made = run(found, methods=methods)
    assert len(made.losses) == 6 and made.losses[-1] < made.losses[0] and not made.event and made.trained == sum(made.methods.values())
    for module, state in zip(found[:2], before):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert bool(made.vectors) == ("norms" in methods) and bool(made.forms) == (methods != "norms")
    for name, form in made.forms.items():
        old = found[2][name]
        assert form.describe() == old.describe() and form.outline == old.outline and form.nbytes == old.nbytes
        assert not isinstance(old, Masked) or torch.equal(form.mask, old.mask)
    for name, value in made.vectors.items():
        assert value.shape == found[3][name].shape and value.dtype == found[3][name].dtype


def test_what_is_exported_answers_as_what_was_trained():
    """The loss of the second update is that of a plain model with what one update has made."""
    found = compressed()
    one, two = (run(found, Loop(steps=steps, batch=1, rate=0.05)) for steps in (1, 2))
    plain, rows = copy.deepcopy(found[1]), single(found[4])
    for name, form in one.forms.items():
        plain.get_parameter(name).data = form.dense()
    for name, value in one.vectors.items():
        plain.get_parameter(name).data = value
    losses = [loss / count for loss, count in evaluate(plain, rows, distillation(found[0]))]
    assert any(loss == pytest.approx(two.losses[1], rel=1e-5) for loss in losses)
    assert all(
        loss != pytest.approx(two.losses[1], rel=1e-5)
        for loss in [loss / n for loss, n in evaluate(found[1], rows, distillation(found[0]))]
    )


def test_a_killed_healing_goes_on_to_the_last_bit(tmp_path):
    wanted = run(compressed())
    with pytest.raises(KeyboardInterrupt):
        run(compressed(), keep=tmp_path, progress=Killed(4))
    made = run(compressed(), keep=tmp_path)
    assert made.losses == wanted.losses
    for name, form in wanted.forms.items():
        assert torch.equal(made.forms[name].dense(), form.dense())
    assert all(torch.equal(made.vectors[name], value) for name, value in wanted.vectors.items())


class Counted(Quiet):
    """Counts updates."""

    done = 0

    def step(self):
        self.done += 1


def test_a_loss_that_is_no_number_ends_with_what_was_kept(tmp_path):
    found = compressed()
    plain, counted = distillation(found[0]), Counted()

    def breaking(module, batch):
        loss, count = plain(module, batch)
        return (loss * float("nan") if counted.done >= 4 else loss), count

    made = heal(found[1], *found[2:], breaking, LOOP, healers("norms, held"), keep=tmp_path, progress=counted)
    assert len(made.losses) == 4 and "kept at update 4" in made.event and made.forms
    assert all(torch.isfinite(form.dense()).all() for form in made.forms.values())
    made = heal(found[1], *found[2:], breaking, LOOP, healers("norms, held"), progress=counted)
    assert not made.losses and not made.forms and not made.vectors and "must be a number" in made.event


def test_the_first_method_that_suits_trains_a_form():
    _, student, forms, _, _ = compressed()
    units = trainable(student)
    plan = chosen(units, forms, healers("scales codes=true, norms, held rank=2"))
    assert {str(plan[name]) for name in forms} == {"scales codes=true"}
    whole = {name: Masked.of(torch.ones(units[name].shape), torch.ones(units[name].shape).bool()) for name in forms}
    plan = chosen(units, whole, healers("scales, held"))
    assert {str(method) for method in plan.values()} == {"held"} and plan.keys() == forms.keys()


@pytest.mark.parametrize(
    "methods, words", [("gptq bits=3", "must be one trained step"), ("nrms", "is not known"), ("lora | lora", "one trained")]
)
def test_what_cannot_heal_is_told_in_words(methods, words):
    with pytest.raises(SettingError, match=words):
        healers(methods)


def test_nothing_to_train_is_told_in_words():
    found = compressed()
    with pytest.raises(SettingError, match="nothing is"):
        run((*found[:2], {}, {}, found[4]))
