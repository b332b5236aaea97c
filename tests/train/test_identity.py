"""What an interrupted training is told by: the same in each process for the same function, another one for another."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from modicum.train.identity import identity

SCALE = 2


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, module, batch):
        return self.weight * module(batch).sum(1), len(batch)

    def other(self, module, batch):
        return module(batch).sum(1), len(batch)


class Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, module, batch):
        return self.weight * module(batch).sum(1), len(batch)


class Loss(nn.Module):
    def __init__(self, weight, value=0.0):
        super().__init__()
        self.weight = weight
        self.register_buffer("shift", torch.full((2,), value, dtype=torch.bfloat16))

    def forward(self, module, batch):
        return module(batch).sum(1) * self.weight, len(batch)


@dataclass
class Setting:
    rate: float


def closed(value):
    return lambda module, batch: (module(batch) * value, 1)


def defaulted(value):
    def objective(module, batch, weight=value, *, other=value):
        return module(batch) * weight * other, 1

    return objective


def read(module, batch):
    return module(batch) * SCALE, 1


def kind(base, body):
    return type("Objective", (base,), {"__call__": body})


def test_what_computes_something_else_is_another():
    inner = lambda module, batch: (list(map(lambda x: x + 1, batch)), 1)
    outer = lambda module, batch: (list(map(lambda x: x + 2, batch)), 1)
    several = [
        *(partial(read, k=k) for k in (1, 2, True, 1.0)), partial(read, 1), read,
        *(make(value) for make in (closed, defaulted, Weighted, Slotted) for value in (1, 2)),
        *(closed(value) for value in ("1", None, [1, 2], [2, 1], {"a": 1}, {"a": 2}, {1}, {2}, Setting(1.0), Setting(2.0))),
        *(closed(torch.full((3,), value, dtype=dtype)) for value in (0, 1) for dtype in (torch.float32, torch.bfloat16, torch.int64)),
        closed(torch.zeros(1, 3)), closed(torch.zeros(0)), closed(inner), closed(outer), inner, outer,
        Loss(1), Loss(2), Loss(1, 1.0), Weighted(1).other, Weighted(2).other, closed(Weighted(1)), closed(Loss(1)), closed(Loss(2)),
        kind(object, lambda self, module, batch: (module(batch), 1))(), kind(object, lambda self, module, batch: (-module(batch), 1))(),
    ]  # fmt: skip
    assert len({identity(each) for each in several}) == len(several)


def test_what_computes_the_same_is_the_same():
    for make in (closed, defaulted, Weighted, Slotted, Loss, lambda value: partial(read, k=value), lambda value: closed(torch.ones(value))):
        assert identity(make(2)) == identity(make(2))
    around = Weighted(1)
    around.itself = [around]
    again = Weighted(1)
    again.itself = [again]
    assert identity(around) == identity(again) != identity(Weighted(1)), "what holds itself ends"


def test_values_of_its_own_module_count(monkeypatch):
    before = identity(read)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3)
    assert identity(read) != before


def test_another_process_finds_the_same():
    code = """
from functools import partial
from modicum.train.identity import identity
def objective(module, batch, names={"a", "b", "c", "d"}, **words):
    return batch if module in {"a", "b", "c", "d", "e"} else {x: 1 for x in names}
found = identity(partial(objective, known=frozenset("efghijkl"), dictionary={each: 1 for each in set("ijklmnop")}))
"""
    here = {"__name__": "__main__"}
    exec(code, here)
    ran = subprocess.run(
        [sys.executable, "-c", code + "print(found)"], env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True
    )
    assert ran.stdout.strip() == here["found"], ran.stderr
