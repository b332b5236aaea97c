"""What every learner keeps, and what each is for, on a small net and three tasks."""

import copy
import json

import pytest
import torch

import modicum
from modicum.core.errors import DataError, ModelError, SettingError
from modicum.core.recipe import recipe, recipes
from modicum.learn.function_space import Dual
from modicum.learn.gated import Gated, distance, true_distance
from modicum.learn.learning import learn
from modicum.learn.tasks import Task

FAST = {"mos": "mos rank=4", "par": "par tried=10 largest=2", "sfr": "sfr points=10", "laftr": "laftr draws=16 hold=5"}
METHODS = {name: f"{FAST.get(name, name)} steps=40 rate=0.005" for name in sorted(recipes("learn"))}
each = pytest.mark.parametrize("method", list(METHODS.values()), ids=list(METHODS))


@each
def test_tasks_are_learnt_the_base_is_left_alone_and_promises_hold(net, tasks, method):
    before = copy.deepcopy(net.state_dict())
    made = learn(net, tasks, method=method)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    matrix = made.receipt["matrix"]
    assert len(matrix) == 4 and all(matrix[place + 1][place] > 0.8 for place in range(3)), "each is known when it was learnt"
    if made.learner.apart:
        assert all(made.receipt["same bits"].values()) and all(lost["mean"] == 0 for lost in made.receipt["lost"].values())
    for task in tasks:
        with (
            modicum.changed(copy.deepcopy(net), made.delta(task.name)) as module,
            made.learning.answering(made.learning.of[task.name]) as ours,
        ):
            assert torch.equal(task.answers(module), task.answers(ours)), "the delta is what answers"


@each
def test_same_seed_same_bits_and_what_is_saved_answers_alike(net, tasks, method, tmp_path):
    one, other = (learn(net, tasks[:2], place, method=method, seed=3) for place in (tmp_path / "a", None))
    for task in tasks[:2]:
        with one.learning.answering(one.learning.of[task.name]) as module:
            wanted = task.answers(module)
        with other.learning.answering(other.learning.of[task.name]) as module:
            assert torch.equal(task.answers(module), wanted)
        saved = modicum.Delta.load(tmp_path / "a" / f"expert-{one.receipt['experts'][task.name]}")
        with modicum.changed(net, saved) as module:
            assert torch.equal(task.answers(module), wanted)
    assert json.loads((tmp_path / "a" / "receipt.json").read_text())["matrix"] == one.receipt["matrix"]


def test_what_is_held_is_lost_less_than_by_fine_tuning(net, opposed):
    lost = {
        method: sum(each["mean"] for each in learn(net, opposed, method=f"{method} steps=60 rate=0.01").receipt["lost"].values())
        for method in ("finetune", "laftr hold=5", "sfr points=40 hold=200", "joint")
    }
    assert lost["finetune"] > 0.1 and max(lost["laftr hold=5"], lost["sfr points=40 hold=200"], lost["joint"]) < 0.7 * lost["finetune"]


def test_holding_nothing_is_fine_tuning(net, tasks):
    wanted = learn(net, tasks[:2], method="finetune steps=10").receipt["matrix"]
    assert wanted == learn(net, tasks[:2], method="sfr hold=0 steps=10 points=4").receipt["matrix"]
    assert wanted == learn(net, tasks[:2], method="laftr hold=0 steps=10").receipt["matrix"]


def test_related_tasks_share_an_expert_and_others_do_not(net, tasks):
    again = Task("again", tasks[0].test, tasks[0].train)
    made = learn(net, [tasks[0], again], method="par steps=30 related=2 tried=5 largest=2")
    assert made.receipt["experts"] == {"0 or 3": 0, "again": 0} and len(made.receipt["bytes"]) == 1
    assert len(learn(net, [tasks[0], again], method="par steps=5 related=0 tried=5 largest=2").receipt["bytes"]) == 2


def test_an_adapter_is_found_where_nobody_names_the_task(net, tasks):
    made = learn(net, tasks, method="mos steps=60 rate=0.005 rank=4")
    assert min(made.receipt["unnamed"][-1].values()) > 0.6


def test_the_dual_sums_are_those_of_all_rows(net, tasks):
    dual = Dual.of(net, tasks[0], 8, 1.0, 0)
    parted = Dual.of(net, Task("some", tasks[0].train[:30], tasks[0].test), 8, 1.0, 0)
    moved = Dual(parted.task, dual.points, dual.kernel, torch.zeros_like(dual.alpha), torch.zeros_like(dual.beta), 1.0)
    both = moved.updated(net, tasks[0].train[:30]).updated(net, tasks[0].train[30:])
    assert torch.allclose(both.alpha, dual.alpha, rtol=1e-3, atol=1e-3) and torch.allclose(both.beta, dual.beta, rtol=1e-3, atol=1e-3)
    precision = dual.precision()
    assert torch.linalg.eigvalsh(precision.double()).min() > -1e-3 * precision.abs().max()
    mean, variance = dual.predicted(net, dual.points)
    assert mean.shape == variance.shape == (8, 2) and bool((variance >= 0).all())


def test_gates_tell_how_far_a_module_moved(net, tasks):
    known, other = Gated.of(net, tasks[0]), copy.deepcopy(net)
    for parameter in other.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    drawn = known.drawn(256, 0)
    with torch.no_grad():
        told = float(distance(known.answered(net, drawn), known.answered(other, drawn)))
        nothing = float(distance(known.answered(net, drawn), known.answered(net, drawn)))
    true = true_distance(net, other, tasks[0], tasks[0].train)
    assert nothing == 0 and 0.3 * true < told < 3 * true


def test_slips_are_said(net, tasks):
    with pytest.raises(DataError, match="tasks must have names of their own"):
        learn(net, [tasks[0], tasks[0]])
    with pytest.raises(DataError, match="must be a list of"):
        learn(net, ["a.txt"])
    with pytest.raises(DataError, match="must have rows to learn from"):
        Task("a", [], [])
    with pytest.raises(SettingError, match="is not one of learn"):
        recipe("learn", "finetun")
    with pytest.raises(ModelError, match="must be a classifier with rectified units"):
        learn(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 6)), tasks, method="laftr steps=2")
    made = learn(net, tasks[:1], method="probe steps=2")
    with pytest.raises(SettingError, match="must be a task that was learnt"):
        made.delta("no")
