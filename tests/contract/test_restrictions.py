"""Every method that trains a small model, against what training promises of all of them. A new one is held to it by existing."""

import functools
import math
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.train.killed import Killed
from torch import nn

import modicum
from modicum.core.errors import SettingError
from modicum.core.method import registry
from modicum.core.parametrization import Step
from modicum.restrict._family import Pattern, Scored, Sparsity
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.accounts import beginners, restriction
from modicum.train.finding import planned
from modicum.train.learning import learn
from modicum.train.scoring import scored
from modicum.train.trained import trained
from modicum.train.written import account

STEPS, KEEP = 12, 0.5
# What each setting is tried with, where a method has it: small enough for small weights and few updates.
TRIED = {"rank": 2, "keep": KEEP, "every": 2, "n": 2, "looking": 1}


def methods(kind=object):
    for name in beginners():
        cls = registry()[f"restrict/{name}"]
        if issubclass(cls, kind):
            fields = cls.__dataclass_fields__
            yield pytest.param(str(cls(**{word: value for word, value in TRIED.items() if word in fields})), id=name)


every = pytest.mark.parametrize("method", list(methods()))


class Net(nn.Module):
    """Two blocks that are alike, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


def objective(module, batch):
    return F.cross_entropy(module(batch[0]), batch[0][:, :4].argmax(1), reduction="none"), len(batch[0])


def rows(count=24):
    return [(each[None],) for each in torch.randn(count, 8, generator=torch.Generator().manual_seed(1))]


@every
def test_what_was_killed_goes_on_to_the_same_bits(method, tmp_path):
    """Killed twice, before, within and after whatever the method does."""
    loop, found = Loop(steps=STEPS, batch=4, rate=0.02, every=3), []
    for keep, killed in ((None, None), (tmp_path, 4), (tmp_path, 4), (tmp_path, None)):
        net = Net()
        run = functools.partial(learn, net, method, rows(), rows(4), loop, objective=objective, keep=keep)
        if killed:
            with pytest.raises(KeyboardInterrupt):
                run(progress=Killed(killed))
        else:
            found.append((run().losses, list(net.parameters())))
    (losses, whole), (again, resumed) = found
    assert again == losses and all(torch.equal(one, two) for one, two in zip(whole, resumed))


@every
def test_what_is_written_computes_what_was_trained(method, tmp_path):
    """Within what a budget was told beforehand, though one update is too few for most schedules."""
    net, loop = Net(), Loop(steps=1, batch=4, rate=0.02)
    data = [(each[0].repeat(4, 1) * torch.arange(1, 5)[:, None],) for each in rows()]
    made = modicum.train(net, tmp_path / "out", method=method, data=data, objective=objective, loop=loop)
    assert made.receipt["verified"]["largest difference of losses"] < 1e-5
    assert made.receipt["bytes"]["written"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    known = account(Net(), "modicum", data[0])
    spent = known.of(restriction(method))
    assert made.receipt["parameters"]["stored"] <= spent.values and made.receipt["bytes"]["written"] <= spent.bytes
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(made.model(x), modicum.load(tmp_path / "out", into=Net())(x))


# The share of the updates from which on as many weights are used as ``keep`` says, as the guide's table has it.
EXACT = {"tickets": 0.5, "gradual": 0.75, "activating": 0.75, "smp": 0.6, "pst": 0.6, "gradient_flow": 0.75, "wgsef": 0.75, "lapp": 0.4}
SPARSE = [each for each in methods() if issubclass(cls := registry()[f"restrict/{each.id}"], Sparsity | Pattern) or each.id in EXACT]


@pytest.mark.parametrize("method", SPARSE)
def test_as_many_weights_are_used_as_the_guide_says_from_the_step_that_it_names(method):
    name, counts, gone = method.split()[0], list[int](), list[set]()
    method += " bypass=0" if name == "lapp" else ""
    net, x = Net(), torch.cat([row[0] for row in rows()])
    with trained(net, {"layers.*.weight": method}, total=STEPS, scratch=True) as t:
        loss_of = lambda: objective(net, (x,))[0].mean()
        scored(t, loss_of)
        optimizer = torch.optim.Adam(t.parameters(), lr=0.02)
        for _ in range(STEPS):
            counts.append(sum(map(_used, t.places.values(), map(t.weight, t.places))))
            gone.append({(unit, *place) for unit in t.places for place in (t.weight(unit) == 0).nonzero().tolist()})
            loss = loss_of()
            loss = loss if (penalty := t.penalty()) is None else loss + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            t.revise(optimizer)
        counts.append(sum(map(_used, t.places.values(), map(t.weight, t.places))))
        shapes, made = {unit: place.unit.shape for unit, place in t.places.items()}, next(iter(t.places.values())).method
    total = sum(map(math.prod, shapes.values()))
    wanted = round(KEEP * total) if not isinstance(made, Pattern) else round(made.n / made.m * total)
    if name == "spdf":
        assert set(counts[:9]) == {wanted} and set(counts[9:]) == {total}
        return
    first = math.ceil(EXACT.get(name, 0.0) * STEPS)
    assert set(counts[first:]) == {wanted}, counts
    assert made.density(Step(first, STEPS)) == pytest.approx(wanted / total) or name == "freezenet", "its others are random, not zero"
    if name in ("gradual", "activating", "lapp", "wgsef", "tickets") or isinstance(made, Scored):
        assert all(one <= other for one, other in zip(gone[first:], gone[first + 1 :])) or name == "freezenet", "what has gone stays away"


def _used(place, weight):
    """Entries that have a number of their own, whatever it is; where all have one, those that are not zero."""
    return len(place.state["values"]) if "values" in place.state.trained else int((weight != 0).sum())


@every
def test_rows_of_answers_stay(method):
    """A vocabulary's where a language model's blocks are trained, and those of the last layer where there are no blocks."""
    llama, _ = zoo.build("llama")
    assert not [name for name in planned(llama, method).units if "embed" in name or "head" in name]
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    if restriction(method).cuts_rows:
        assert list(planned(plain, method).units) == ["0.weight", "2.weight"]
        assert list(planned(nn.Sequential(nn.Linear(8, 4)), method).units) == ["0.weight"], "who has one layer alone means it"


@pytest.mark.parametrize("method", ["lsq bits=2", "bitnet inputs_in=float"])
def test_a_grid_that_overflows_is_told_and_nothing_is_written(method, tmp_path):
    net = Net()
    net.layers[0][0].weight.data.fill_(3e38)
    with pytest.raises(SettingError, match="layers.0.0.weight: a grid must have a scale that float32 holds"):
        modicum.train(
            net, tmp_path / "out", method=method, data=[(torch.zeros(4, 8),)] * 12, objective=objective, loop=Loop(steps=1, batch=4)
        )
    assert not (tmp_path / "out").exists()


def test_the_median_method_takes_150_lines_with_its_test_at_most():
    code, tests = Path(modicum.__file__).parent / "restrict", Path(__file__).parents[1] / "restrict"
    files = [(code / f"{name}.py", tests / f"test_{name}.py") for name in beginners()]
    sizes = [sum(len(path.read_text(encoding="utf-8").splitlines()) for path in both) for both in files]
    assert statistics.median(sizes) <= 150
