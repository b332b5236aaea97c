"""Several ranks make what one process makes, each weight once; one of them writes, and a rank that dies ends all."""

import contextlib
import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from modicum.core.errors import ModelError, SettingError
from modicum.fit import choosing, fit
from modicum.fit.assemble import Assembly
from modicum.fit.choosing import Choosing
from modicum.fit.run import Run
from modicum.measure import measure
from modicum.measure.measurement import Measurement
from modicum.sweep.ranks import LONE
from modicum.testing import zoo
from modicum.work.store import ChainStore

# Without refining: a code that falls to the other side of a border then moves those after it, not all of its row.
# What follows the last digit of a sum more than a solve alone does is left out.
_PLAIN = "sweeps=0 towards=0 turns=1"
GPTQ = {"method": f"gptq bits=3 group=32 {_PLAIN}"}
_BITS = f"gptq bits=2 group=32 {_PLAIN},gptq bits=4 group=32 sweeps=0,gptq bits=3 {_PLAIN} | eora rank=2"
BUDGET = {"bpw": 5, "menu": f"{_BITS},ziplm keep=0.5,replaceme count=1", "group": 32, "search_time": 0.0}


def given(name, count=3):
    """A model for each of two ranks, and one for a process alone; batches of several builds."""
    return [zoo.build(name)[0] for _ in range(3)], [batch for seed in range(count) for batch in zoo.build(name, seed=seed)[1]]


@pytest.fixture
def noted(monkeypatch):
    """(rank, unit) of every unit that is made or measured."""
    did = {Assembly: [], Measurement: []}
    for cls, name in ((Assembly, "_make"), (Measurement, "_unit")):
        plain = getattr(cls, name)

        def noting(self, unit, stats, plain=plain, cls=cls):
            did[cls].append((self.ranks.rank, unit.name))
            return plain(self, unit, stats)

        monkeypatch.setattr(cls, name, noting)
    return did


def units(did):
    """What was made or measured, by whom it may have been."""
    return sorted(unit for _, unit in did)


def equal_codes(one, other):
    """Share of equal entries over all tensors of two outputs."""
    pairs = [(load_file(path), load_file(other / path.name)) for path in sorted(one.glob("*.safetensors"))]
    counts = [((a[key] == b[key]).sum().item(), a[key].numel()) for a, b in pairs for key in a]
    return sum(same for same, _ in counts) / sum(size for _, size in counts)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", GPTQ),
        pytest.param("llama", {"method": "replaceme count=1 | gptq bits=4"}, marks=pytest.mark.slow),
        ("llama", BUDGET),
        pytest.param("qwen3_moe", GPTQ, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", BUDGET, marks=pytest.mark.slow),
        pytest.param("cnn", {**BUDGET, "menu": f"gptq bits=2 {_PLAIN},gptq bits=4 {_PLAIN}"}, marks=pytest.mark.slow),
    ],
    ids=["gptq", "span", "budget", "experts", "experts-budget", "convolutions"],
)
def test_ranks_make_what_one_process_makes(together, tmp_path, noted, name, settings):
    models, batches = given(name)

    def work(ranks):
        # The second rank is told a place of its own, where nothing may stay.
        out = tmp_path / ("lone" if ranks is LONE else f"rank-{ranks.rank}") / "out"
        return fit(models[2 if ranks is LONE else ranks.rank], data=batches, out=out, target="modicum", ranks=ranks, **settings)

    alone = work(LONE)
    did = {cls: list(theirs) for cls, theirs in noted.items()}
    for theirs in noted.values():
        theirs.clear()
    first, second = together(work)
    assert first.out == second.out == tmp_path / "rank-0" / "out" and not any((tmp_path / "rank-1").iterdir())
    assert [path.name for path in first.out.parent.iterdir()] == ["out"]
    assert first.receipt == second.receipt and first.plan == second.plan and first.receipt["versions"]["ranks"] == 2
    for cls, ours in noted.items():
        assert units(ours) == units(did[cls])
        # A chain of single weights leaves the second nothing to make.
        assert {rank for rank, _ in ours} in ([{0}] if name == "cnn" else [{0, 1}] if did[cls] else [set()])
    # Sums in another order: a code at the border of two may fall to the other, which moves what comes after it.
    assert first.plan == alone.plan and first.receipt["bytes"]["actual"] == alone.receipt["bytes"]["actual"]
    assert equal_codes(first.out, alone.out) > 0.99
    mean = [found.receipt["quality"]["mean"] for found in (first, alone)]
    assert mean[0] == pytest.approx(mean[1], rel=0.02)


@pytest.mark.slow
def test_ranks_that_aim_at_the_original_agree(together, tmp_path):
    """A code at the border of two moves what all later weights aim at: ranks have the same file, and it loses what that of one process does."""
    models, batches = given("llama")

    def work(ranks):
        out = tmp_path / ("lone" if ranks is LONE else f"rank-{ranks.rank}") / "out"
        return fit(
            models[2 if ranks is LONE else ranks.rank], data=batches, out=out, target="modicum", ranks=ranks, method="gptq bits=3 group=32"
        )

    alone, (first, second) = work(LONE), together(work)
    assert first.receipt == second.receipt and first.receipt["bytes"]["actual"] == alone.receipt["bytes"]["actual"]
    assert equal_codes(first.out, alone.out) > 0.8
    assert first.receipt["quality"]["mean"] == pytest.approx(alone.receipt["quality"]["mean"], rel=0.1)


# Interrupted


class DiedError(Exception):
    """Stands for whatever ends a rank."""


@contextlib.contextmanager
def dying(rank, cls, name, count, after=False):
    """One rank ends at the ``count``-th call of a method, or behind it."""
    plain, calls = getattr(cls, name), []

    def counted(self, *arguments):
        if self.ranks.rank == rank:
            calls.append(name)
        end = self.ranks.rank == rank and len(calls) == count
        if end and not after:
            raise DiedError
        result = plain(self, *arguments)
        if end:
            raise DiedError
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, name, counted)
        yield


# The model has three blocks: the first three of ChainStore are the measurement's, the others the assembly's.
ENDS = {
    "a block measured": (1, ChainStore, "keep", 2),
    "its outputs written by one": (0, ChainStore, "_stored", 2, True),
    "its harms written by one": (1, Measurement, "save", 2, True),
    "the choice": (0, Choosing, "_chosen", 1, True),
    "a block made": (1, ChainStore, "keep", 5, True),
    "its forms written by the other": (1, Assembly, "_flush", 2),
    "all but the last": (0, ChainStore, "_stored", 6, True),
    "the receipt": (0, Run, "_receipt", 1),
}


@pytest.fixture(scope="module")
def uninterrupted(together, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    return together(fitting(out))[0]


def fitting(out):
    """What each of some ranks does; models are made before, by nobody's chance but their own."""
    models, batches = given("llama")
    settings = {"bpw": 5, "menu": f"nearest bits=2,nearest bits=4,gptq bits=3 {_PLAIN}", "group": 32, "search_time": 0.0}
    return lambda ranks: fit(models[ranks.rank], data=batches, out=out, target="modicum", ranks=ranks, **settings)


# Each stage once in the short form: within the measurement, after the choice, within the assembly.
SHORT = ("its outputs written by one", "the choice", "its forms written by the other")


@pytest.mark.parametrize("end", [pytest.param(end, marks=[] if end in SHORT else pytest.mark.slow) for end in ENDS])
def test_interrupted_ranks_continue_to_the_same_bytes(together, uninterrupted, tmp_path, noted, end):
    with dying(*ENDS[end]):
        found = together(fitting(tmp_path / "out"))
    assert isinstance(found[ENDS[end][0]], DiedError) and isinstance(found[1 - ENDS[end][0]], ModelError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "out.rank-1.partial"]
    before = {cls: set(units(did)) for cls, did in noted.items()}
    for did in noted.values():
        did.clear()
    first, second = together(fitting(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and first.receipt == second.receipt
    for path in uninterrupted.out.glob("*.safetensors"):
        assert path.read_bytes() == (first.out / path.name).read_bytes()
    assert first.plan == uninterrupted.plan and first.receipt["quality"] == uninterrupted.receipt["quality"]
    # What all have kept is not done again, by nobody: at most the block in hand is, with a unit or two outside blocks.
    for cls, did in noted.items():
        again = before[cls] & set(units(did))
        assert len({unit.split(".")[2] for unit in again if ".layers." in unit}) <= 1, (cls, again)


def test_an_interrupted_measurement_of_ranks_continues(together, tmp_path, noted):
    models, batches = given("llama")
    settings = {"menu": "nearest bits=2,nearest bits=4,ziplm keep=0.5", "group": 32, "search_time": 0.0, "target": "modicum"}
    work = lambda out: together(lambda ranks: measure(models[ranks.rank], data=batches, out=tmp_path / out, ranks=ranks, **settings))
    whole = work("whole")[0]
    wanted = units(noted[Measurement])
    noted[Measurement].clear()
    with dying(0, ChainStore, "keep", 2, True):
        work("out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "out.rank-1.partial", "whole"]
    found = work("out")
    assert found[0].findings == found[1].findings == whole.findings and units(noted[Measurement]) == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_run_of_fewer_ranks_clears_away_what_more_have_left(together, tmp_path):
    with dying(1, ChainStore, "keep", 2):
        together(fitting(tmp_path / "out"), 3)
    assert (tmp_path / "out.rank-2.partial").exists()
    (tmp_path / "out.rank-3.partial").mkdir()  # of somebody else
    fitting(tmp_path / "out")(LONE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.rank-3.partial"]


def test_plans_are_judged_by_one_on_the_forms_of_all(together, tmp_path, noted, monkeypatch):
    monkeypatch.setattr(choosing, "too_slow", lambda *_: "")  # however busy the machine is
    models, batches = given("llama")
    first, second = together(
        lambda ranks: fit(
            models[ranks.rank], data=batches, out=tmp_path / "out", target="modicum", ranks=ranks, **BUDGET | {"search_time": 2.0}
        )
    )  # fmt: skip
    assert first.receipt == second.receipt and first.receipt["search"]["evaluations"] > 0 and first.receipt["search"]["rank"]
    assert len(set(noted[Measurement])) == len(noted[Measurement]) and {rank for rank, _ in noted[Measurement]} == {0, 1}


def test_a_measurement_of_ranks_is_that_of_one(together, tmp_path):
    models, batches = given("llama")

    def work(ranks):
        return measure(
            models[2 if ranks is LONE else ranks.rank], data=batches, out=tmp_path / f"of-{ranks.count}", group=32,
            menu="nearest bits=2,nearest bits=4,ziplm keep=0.5", search_time=0.0, target="modicum", ranks=ranks,
        )  # fmt: skip

    alone, found = work(LONE), together(work)
    assert found[0].findings == found[1].findings and sorted(path.name for path in tmp_path.iterdir()) == ["of-1", "of-2"]
    for unit, options in alone.findings.units.items():
        for text, finding in options.items():
            other = found[0].findings.units[unit][text]
            assert other.harm == pytest.approx(finding.harm, rel=1e-3) and other.under == pytest.approx(finding.under, rel=1e-3)
    assert fit(models[2], measured=found[0], bpw=5, out=tmp_path / "chosen").receipt["bytes"]["actual"] > 0


def test_an_error_of_one_ends_all(together, tmp_path, monkeypatch):
    models, batches = given("llama")
    plain = Assembly._make

    def broken(self, unit, stats):
        if self.ranks.rank == 1 and "layers.1" in unit.name:
            raise ZeroDivisionError
        return plain(self, unit, stats)

    monkeypatch.setattr(Assembly, "_make", broken)
    first, second = together(
        lambda ranks: fit(models[ranks.rank], data=batches, out=tmp_path / "out", target="modicum", ranks=ranks, **GPTQ)
    )  # fmt: skip
    assert isinstance(second, ZeroDivisionError)
    assert isinstance(first, ModelError) and "another has stopped" in str(first) and not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_said_before_any_work(together, tmp_path, noted):
    models, batches = given("llama", 1)
    run = lambda ranks, **settings: fit(
        models[ranks.rank], target="modicum", ranks=ranks, **{"data": batches, "out": tmp_path / "out"} | settings
    )
    wanted = {
        "must be at most 2, the number of calibration batches": (3, lambda ranks: GPTQ),
        "must all be given the same settings": (2, lambda ranks: {"method": f"nearest bits={ranks.rank + 3}"}),
        "exists already": (2, lambda ranks: {**GPTQ, "out": tmp_path}),
    }
    for sentence, (count, settings) in wanted.items():
        found = together(lambda ranks, settings=settings: run(ranks, **settings(ranks)), count)
        assert all(isinstance(error, SettingError) and sentence in str(error) for error in found), (sentence, found)
    assert not noted[Assembly] and not (tmp_path / "out").exists()


# Processes

DIES = """
import os
from modicum.fit.assemble import Assembly
plain, calls = Assembly._make, []
def dying(self, unit, stats):
    calls.append(unit.name)
    if self.ranks.rank == 1 and len(calls) == 12:
        os._exit(9)
    return plain(self, unit, stats)
Assembly._make = dying
from modicum.cli.main import main
main()
"""
SIZES = ("--samples", "4", "--micro-batch", "1", "--tokens", "64", "--test-samples", "2", "--gradient-samples", "2")


def torchrun(*words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_the_command_under_torchrun(tmp_path):
    fitting = ("fit", "demo", "--bpw", "4", "--menu", "int2,int4,int8", "--search-time", "0", "--json", *SIZES)
    done = torchrun("-m", "modicum", *fitting, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # of one rank alone
    one = subprocess.run(
        [sys.executable, "-m", "modicum", *fitting, "--out", str(tmp_path / "one")], capture_output=True, text=True, timeout=240
    )
    alone = json.loads(one.stdout)
    assert said["versions"]["ranks"] == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert said["bytes"]["actual"] <= said["bytes"]["allowed"] and "loader" in said["verification"]
    options = [[(site["site"], site["option"]) for site in receipt["sites"]] for receipt in (said, alone)]
    # 256 tokens do not determine a covariance of 1024 columns: a sum in another order moves many codes, and with them what is lost, either way.
    assert options[0] == options[1] and said["predicted_harm"] == pytest.approx(alone["predicted_harm"], rel=1e-2)
    assert said["quality"]["mean"] == pytest.approx(alone["quality"]["mean"], rel=0.2)


@pytest.mark.slow
def test_a_killed_rank_ends_all_and_all_continue(tmp_path):
    (tmp_path / "dies.py").write_text(DIES)
    done = torchrun(tmp_path / "dies.py", "fit", "demo", "--method", "gptq bits=4", *SIZES, "--out", tmp_path / "out")
    assert done.returncode != 0 and not (tmp_path / "out").exists()
    for out in ("out", "whole"):  # continued, and never interrupted
        assert torchrun("-m", "modicum", "fit", "demo", "--method", "gptq bits=4", *SIZES, "--out", tmp_path / out).returncode == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dies.py", "out", "whole"]
