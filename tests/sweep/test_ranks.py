"""Ranks: what each has is summed, what each makes goes to all, and none waits for one that went wrong."""

import pytest
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.core.method import Need
from modicum.forms import Dense
from modicum.models.open import open_model
from modicum.sweep import Sweep, output_gradients, rehearse
from modicum.sweep.ranks import LONE, Ranks, dealt, joined
from modicum.testing import zoo


def test_a_lone_rank_does_the_plain_thing():
    value = torch.ones(2)
    LONE.sum("ones", value)
    assert torch.equal(value, torch.ones(2)) and LONE.share([1, 2]) == [1, 2] and LONE.gather("all", 3) == [3]
    assert dict(LONE.deal("all", {"a": 1.0, "b": 2.0}, str.upper)) == {"a": "A", "b": "B"} and LONE.first("one", lambda: 5) == 5


def test_without_torchrun_a_rank_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with joined() as ranks:
        assert ranks is LONE


def test_tensors_are_summed_though_one_rank_has_fewer(together):
    def work(ranks):
        mine = {"both": torch.full((3,), float(ranks.rank + 1))} | ({"second": torch.ones(2, 2)} if ranks.rank else {})
        return ranks.union("some", mine)

    for found in together(work):
        assert list(found) == ["both", "second"]
        assert torch.equal(found["both"], torch.full((3,), 3.0)) and torch.equal(found["second"], torch.ones(2, 2))


def test_each_task_is_done_once_and_all_get_it(together):
    tasks, done = {f"unit {place}": float(place % 4) for place in range(9)}, []

    def make(name):
        done.append(name)
        return name.upper()

    for found in together(lambda ranks: list(ranks.deal("units", tasks, make)), 3):
        assert found == [(name, name.upper()) for name in tasks]
    assert sorted(done) == sorted(tasks)


def test_work_is_dealt_evenly_and_alike_in_any_order():
    tasks = {"a": 8.0, "b": 7.0, "c": 6.0, "d": 5.0, "e": 4.0}
    owners = dealt(tasks, 2)
    loads = [sum(tasks[name] for name in tasks if owners[name] == rank) for rank in range(2)]
    assert max(loads) <= 17 and owners == dealt(dict(reversed(tasks.items())), 2)


def test_forms_travel_without_what_they_are_views_of(together):
    whole = torch.arange(40_000.0).reshape(200, 200)
    first, second = together(lambda ranks: ranks.first("form", lambda: Dense(whole[:2])))
    assert torch.equal(second.dense(), first.dense())
    assert second.dense().untyped_storage().nbytes() == second.dense().nbytes


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_caller_caused_is_said_by_all(together, rank):
    def make(name):
        raise SettingError(f"{name}: cannot be.")

    def work(ranks):
        return list(ranks.deal("units", {"a": 1.0} if rank == 0 else {"a": 2.0, "b": 1.0}, make if ranks.rank == rank else str.upper))

    said = {str(error) for error in together(work)}
    assert said == ({"a: cannot be."} if rank == 0 else {"b: cannot be."})


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_breaks_off_stops_the_others(together, rank):
    def work(ranks):
        if ranks.rank == rank:
            raise ZeroDivisionError
        ranks.sum("ones", torch.ones(2))

    found = together(work)
    assert isinstance(found[rank], ZeroDivisionError)
    assert isinstance(found[1 - rank], ModelError) and "another has stopped" in str(found[1 - rank])


@pytest.mark.parametrize("shapes", [((2,), (2,)), ((2,), (3,))])
def test_ranks_that_stand_at_different_calls_say_so(together, shapes):
    names = ["a", "a" if shapes[0] != shapes[1] else "b"]
    found = together(lambda ranks: ranks.sum(names[ranks.rank], torch.ones(shapes[ranks.rank])))
    assert all(isinstance(error, ModelError) and "must be reached by all ranks" in str(error) for error in found)


def test_refusals(together):
    with pytest.raises(SettingError, match="must be at most 1, the number of calibration batches, are 2"):
        Ranks(1, 2).share(["batch"])
    model = open_model(zoo.build("mlp")[0])
    with pytest.raises(SettingError, match="needs the inputs themselves"):
        Sweep(model, [], rehearse(model, zoo.build("mlp")[1][0]), needs={Need.INPUTS}, ranks=Ranks(0, 2))
    found = together(lambda ranks: ranks.agreed(f"asked of {ranks.rank}"))
    assert all("must all be given the same settings" in str(error) for error in found)
    # A rank continues its own share, of as many ranks, and nothing else.
    shares = [LONE.agreed("asked"), *(share for count in (2, 3) for share in together(lambda ranks: ranks.agreed("asked"), count))]
    assert len(set(shares)) == 6 and shares[0] == "asked"


def opened(name):
    """A model for each of two ranks, in a process that has one source of chance for both; and its batches."""
    return [open_model(zoo.build(name)[0]) for _ in range(2)], zoo.build(name)[1]


def close(one, other, rtol=1e-4):
    """Whether two tensors, numbers or Nones are the same but for the order of sums."""
    if one is None or other is None:
        return one is other
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return torch.allclose(one, other, rtol=rtol, atol=0.1 * rtol * float(other.abs().max()))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "cnn"])
def test_statistics_of_all_batches_reach_all_ranks(together, name):
    models, batches = opened(name)

    def work(ranks):
        model, found = models[ranks.rank], {}
        script = rehearse(model, batches[0])
        Sweep(model, batches, script, lambda stage: found.update(stage.stats), needs={Need.COVARIANCE}, ranks=ranks).finish()
        return found

    alone = work(LONE)
    for found in together(work):
        assert list(found) == list(alone)
        for unit, stats in found.items():
            assert stats.count == alone[unit].count
            for part in ("total", "square", "covariance", "frequency"):
                assert close(getattr(stats, part), getattr(alone[unit], part)), (unit, part)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_gradients_of_all_batches_reach_all_ranks(together, name):
    models, batches = opened(name)

    def work(ranks):
        model = models[ranks.rank]
        return output_gradients(model, batches[:3], rehearse(model, batches[0]), seed=1, covariance=True, ranks=ranks)

    alone = work(LONE)
    for found in together(work):
        assert found.keys() == alone.keys()
        for unit, one in found.items():
            for part in ("gradient", "square", "covariance", "trace"):
                assert close(getattr(one, part), getattr(alone[unit], part)), (unit, part)
