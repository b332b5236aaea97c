"""Workers answer as one process does, to the last bit, whoever of them dies on the way."""

import os
import signal
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from modicum.allocate.random import spread
from modicum.core.errors import ModelError, SettingError
from modicum.core.option import Option
from modicum.core.progress import Quiet
from modicum.judge.crews import Died
from modicum.judge.judge import Levels, PlanJudge
from modicum.judge.worker import Worker
from modicum.judge.workers import Spread, workers
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.measure.survey import Survey
from modicum.sweep.spill import SpillPool
from modicum.table.findings import Findings
from modicum.testing import zoo
from modicum.work.meter import Meter

MENU = ("nearest bits=2 group=64", "gptq bits=4 group=64 sweeps=0", "replaceme count=1", "ziplm keep=0.5")


def judged_by(source, place, batches, menu=MENU, ram=None, **words):
    """A judge of a tiny model, with nothing made yet."""
    settings = Settings(menu=tuple(Option.parse(text) for text in menu), harm="error", target="modicum", **words)
    subject = Subject.open(source, settings, batches)
    sizing, pool = subject.sizing("modicum"), SpillPool(ram)
    levels = Levels(place / "levels", sizing, Findings(), subject.data.calibration, pool, 0)
    levels.findings = Survey(subject, ["modicum"], place / "measure", pool, Meter(), Quiet()).run()
    table = sizing.table(levels.findings)
    return PlanJudge(table, levels, subject.data.validation, subject.model.is_causal, subject.original)


@pytest.fixture(scope="module")
def llama():
    batches = [batch for seed in range(3) for batch in zoo.build("llama", seed=seed)[1]]
    return zoo.build("llama")[0], batches


@pytest.fixture(scope="module")
def judge(llama, tmp_path_factory):
    return judged_by(llama[0], tmp_path_factory.mktemp("judge"), llama[1])


def kinds(judge, plans):
    """Kinds of options that the plans use."""
    return {judge.table.choices[site][index].option.split(" ")[0] for picks in plans for site, index in picks.items()}


def same(one, other):
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other))


@pytest.mark.slow
def test_a_checkpoint_is_judged_in_its_own_dtype(llama, tmp_path):
    """Workers open it and load nothing before they judge."""
    zoo.build("llama", dtype=torch.bfloat16)[0].save_pretrained(tmp_path / "model")
    judge = judged_by(tmp_path / "model", tmp_path, llama[1], MENU[:1])
    plans = spread(judge.table, 3, 0)
    plain = judge.many(plans, judge.samples)
    judge._found.clear()
    with workers(judge, "2") as pooled:
        assert same(pooled.many(plans, judge.samples), plain)


def test_processes_answer_as_one_does_though_one_is_killed(judge, monkeypatch):
    plans, events = spread(judge.table, 8, 0), []
    assert kinds(judge, plans) >= {"keep", "gone", "nearest", "gptq", "replaceme", "ziplm"}
    plain = judge.many(plans, judge.samples)
    before = judge.evaluations
    judge._found.clear()
    with workers(judge, "2", events) as pooled:
        assert same(pooled.many(plans, judge.samples), plain) and not events
        assert judge.evaluations == before + len(plans) and pooled.samples == judge.samples
        assert pooled.crew.members[0][0].pid != os.getpid()
        give, killed = pooled.crew.give, []

        def give_and_kill(place, task):
            (process, _), last = pooled.crew.members[place], len(killed) == 1
            if task[0] == plans[2] and not last:
                os.kill(process.pid, signal.SIGSTOP)  # so that it dies before it can answer
                give(place, task)
                killed.append(place)
                os.kill(process.pid, signal.SIGKILL)
            else:
                give(place, task)

        monkeypatch.setattr(pooled.crew, "give", give_and_kill)
        judge._found.clear()
        assert same(pooled.many(plans, judge.samples), plain)
        assert len(killed) == 1 and events == ["search: a worker died (exit code -9) and was replaced"]
        processes = [process for process, _ in pooled.crew.members.values()]
        folder = pooled.folder
    assert not any(process.is_alive() for process in processes) and not folder.exists()


@pytest.mark.slow
def test_ray_answers_as_one_process_does_though_an_actor_is_killed(judge):
    ray = pytest.importorskip("ray")
    plans, events = spread(judge.table, 8, 0), []
    plain = judge.many(plans, judge.samples)
    judge._found.clear()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with workers(judge, "ray", events) as pooled:
            assert pooled.crew.count == 2
            assert same(pooled.many(plans, judge.samples), plain) and not events
            give, killed = pooled.crew.give, []

            def give_and_kill(place, task):
                give(place, task)
                if task[0] == plans[2] and not killed:
                    killed.append(place)
                    ray.kill(pooled.crew.members[place])

            pooled.crew.give = give_and_kill
            judge._found.clear()
            assert same(pooled.many(plans, judge.samples), plain)
            assert events == ["search: a worker died (ActorDiedError) and was replaced"]
        assert ray.is_initialized()
    finally:
        ray.shutdown()


# One worker, without a process of its own


@pytest.fixture
def alone(monkeypatch):
    """Makes workers' crews of one worker in this process; they are returned, to look into."""
    threads = torch.get_num_threads()
    monkeypatch.setattr("modicum.judge.workers.Processes", InPlace)
    yield
    torch.set_num_threads(threads)


class InPlace:
    def __init__(self, count, folder):
        self.count, self.waiting, self.worker, self.members = 1, deque(), Worker(), {}
        self.waiting.append((0, self.worker.open(folder, 1)))

    def give(self, place, task):
        self.waiting.append((place, self.worker.outcome(task)))

    def answers(self):
        return [self.waiting.popleft()]


def test_a_directory_is_opened_again(llama, tmp_path, alone):
    module, batches = llama
    module.save_pretrained(tmp_path / "model")
    judge = judged_by(tmp_path / "model", tmp_path, batches, MENU[:2], ram=1_000_000)
    plans = spread(judge.table, 3, 1)
    with workers(judge, "2") as pooled:
        assert same(pooled.many(plans, 1), judge.many(plans, 1))
        other = pooled.crew.worker.judge
        assert other.target.model is not judge.target.model and other.target.model.weights.lazy
        assert other.levels.pool.limit == 500_000  # shared out


def test_workers_compute_in_the_dtype_of_the_run(llama, tmp_path, alone):
    zoo.build("llama", dtype=torch.bfloat16)[0].save_pretrained(tmp_path / "model")
    judge = judged_by(tmp_path / "model", tmp_path, llama[1], MENU[:1], compute="float32")
    plans = spread(judge.table, 2, 0)
    with workers(judge, "2") as pooled:
        assert same(pooled.many(plans, 1), judge.many(plans, 1))
        assert pooled.crew.worker.judge.target.model.computed == torch.float32 == judge.target.model.computed


def test_workers_judge_what_was_moved_beside_what_came(llama, tmp_path, alone):
    """Values that stand in the place of the checkpoint's go with the recipe, and so does the original."""
    zoo.build("llama")[0].save_pretrained(tmp_path / "model")
    judge = judged_by(tmp_path / "model", tmp_path, llama[1], MENU[:1], rotate="hadamard", smooth=0.5)
    plans = spread(judge.table, 2, 0)
    with workers(judge, "2") as pooled:
        assert same(pooled.many(plans, 1), judge.many(plans, 1))
        other = pooled.crew.worker.judge
        assert other.original is not other.target.model and judge.original is not judge.target.model


def test_workers_never_write(judge, alone):
    with workers(judge, "2") as pooled:
        pooled.many(spread(judge.table, 4, 2), 1)
        files = sorted(judge.levels.store.directory.iterdir())
        stamps = [path.stat().st_mtime_ns for path in files]
        other = pooled.crew.worker.judge
        other.many(spread(judge.table, 4, 2), 2)
        assert [path.stat().st_mtime_ns for path in sorted(judge.levels.store.directory.iterdir())] == stamps
        lacking = (judge.target.sites()[0].units[0].name, "nearest bits=7 group=64", "")
        other.levels.require([lacking])
        assert lacking not in other.levels and sorted(judge.levels.store.directory.iterdir()) == files


def test_one_worker_is_the_judge_itself_and_one_candidate_stays_here(judge, alone):
    with workers(judge, "1") as plain:
        assert plain is judge
    with workers(judge, "2") as pooled:
        (picks,) = spread(judge.table, 1, 0)
        pooled.crew.give = None
        assert np.array_equal(pooled(picks, 2), judge(picks, 2)) and same(pooled.many([picks], 2), [judge(picks, 2)])


def test_what_cannot_be_sent_is_refused(llama, tmp_path):
    class Local(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = zoo.Mlp()

        def forward(self, x):
            return self.body(x)

    judge = judged_by(Local(), tmp_path, zoo.build("mlp")[1], ["nearest bits=4 group=64"])
    with (
        pytest.raises(SettingError, match="workers: Local must be picklable .* Give it as a directory, or pass --workers 1"),
        workers(judge, "2"),
    ):
        pass
    assert not list(tmp_path.glob("workers-*"))


@pytest.mark.parametrize("spec", ["0", "-1", "two", ""])
def test_other_words_are_refused(judge, spec):
    with pytest.raises(SettingError, match="workers: must be a number of processes or ray, got"), workers(judge, spec):
        pass


def test_without_ray_the_extra_is_named(judge, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SettingError, match=r"workers: ray must be installed, is not. Install modicum\[ray\]"), workers(judge, "ray"):
        pass


# Deaths and errors, told by a script


class Plain:
    """A judge that knows its answers: the number of the plan, so often as there are samples."""

    samples, evaluations, table, levels = 4, 0, None, None

    def __init__(self):
        self.known = {}

    def __call__(self, picks, samples):
        return self.known.get(picks["site"], self.rows(picks, 0, samples))

    def rows(self, picks, begun, samples):
        return np.full(samples - begun, float(picks["site"]))

    def judged(self, picks):
        return 0

    def learn(self, picks, begun, rows):
        self.known[picks["site"]] = rows

    def prepare(self, candidates):
        """There are no forms to make."""


class Scripted:
    """Workers that answer a plan as ``script`` says, as long as it does, then truly; ``unborn`` of them never open the model."""

    def __init__(self, count, script=None, unborn=()):
        self.count, self.script, self.asked, self.retired = count, script or {}, [], []
        self.waiting = deque((place, Died("killed") if place in unborn else None) for place in range(count))

    def give(self, place, task):
        site = task[0]["site"]
        self.asked.append((place, site))
        self.waiting.append((place, self.script[site].pop(0) if self.script.get(site) else Plain().rows(*task)))

    def answers(self):
        return [self.waiting.popleft()]

    def renew(self, place):
        self.waiting.append((place, None))

    def retire(self, place):
        self.retired.append(place)


def asked(crew, count=6, events=None):
    pooled = Spread(Plain(), crew, None, [] if events is None else events)
    return pooled, [float(found[0]) for found in pooled.many([{"site": place} for place in range(count)], 3)]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_answers_stand_in_the_order_of_the_questions(count):
    assert asked(Scripted(count))[1] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("dying", range(6))
def test_a_death_costs_nothing_but_time(dying):
    crew = Scripted(2, {dying: [Died("signal")]})
    assert asked(crew)[1] == [0, 1, 2, 3, 4, 5]
    again = [place for place, site in crew.asked if site == dying]
    assert len(crew.asked) == 7 and len(again) == 2 and again[0] != again[1]  # judged again elsewhere


def test_what_kills_twice_is_lost_and_the_search_goes_on():
    events = []
    pooled, found = asked(Scripted(3, {1: [Died("a"), Died("b")]}), events=events)
    assert found == [0, np.inf, 2, 3, 4, 5]
    assert events[-1] == "search: a candidate is lost, both workers that judged it died"
    assert [len(pooled.many([{"site": place} for place in range(3)], 3)[place]) for place in range(3)] == [3, 3, 3]


def test_who_never_opens_the_model_is_missed_only_where_nobody_does():
    events = []
    crew = Scripted(3, unborn=(0, 2))
    assert asked(crew, events=events)[1] == [0, 1, 2, 3, 4, 5] and crew.retired == [0, 2]
    assert events[-1] == "search: a worker died as it opened the model (killed), 1 are left"
    with pytest.raises(SettingError, match=r"workers: must open the model, 2 died before they had \(killed\). Pass fewer --workers"):
        asked(Scripted(2, unborn=(0, 1)))


def test_the_first_candidates_error_is_raised_and_no_answer_is_mistaken_afterwards():
    crew = Scripted(2, {3: [ModelError("of the fourth")], 1: [ModelError("of the second")]})
    pooled = Spread(Plain(), crew, None, [])
    with pytest.raises(ModelError, match="of the second"):
        pooled.many([{"site": place} for place in range(6)], 3)
    crew.answers = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        pooled.many([{"site": 7}, {"site": 8}], 3)
    del crew.answers
    assert [float(found[0]) for found in pooled.many([{"site": 1}, {"site": 2}], 3)] == [1, 2]


def test_an_error_that_cannot_be_sent_is_told_in_words():
    class OddError(Exception):
        def __init__(self, first, second):
            super().__init__(first)

    worker = Worker()
    worker.judge = SimpleNamespace(rows=lambda *task: (_ for _ in ()).throw(OddError("one", "two")))
    told = worker.outcome(({}, 0, 1))
    assert type(told) is RuntimeError and "OddError: one" in str(told)
    worker.judge = SimpleNamespace(rows=lambda *task: (_ for _ in ()).throw(ModelError("as it is")))
    assert type(worker.outcome(({}, 0, 1))) is ModelError
