"""Shapeshifters: any size of the bank, below and above the model's, and groups that are found."""

import pytest
import torch

from modicum.restrict.shapeshifter import _alike


@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0, 3.0])
def test_it_learns_at_any_size(problem, keep):
    seen = {}

    def each(number, t, optimizer):
        seen["count"] = t.count
        seen.setdefault(tuple(t.places["0.weight"].state["runs"][:, 1].tolist()), number)

    found, _ = problem.learn(f"shapeshifter keep={keep} templates=2", steps=150, each=each)
    start, _ = problem.learn(f"shapeshifter keep={keep} templates=2", steps=1)
    size = 64 * 16 + 16 * 8
    assert found < start and seen["count"] == round(keep * size) + 2 * 2


def test_weights_of_alike_proportions_are_one_group():
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0], [0.1, 1.1]])
    first, second, third, fourth, fifth = _alike(rows, 3).tolist()
    assert first == second and third == fifth and len({first, third, fourth}) == 3


def test_groups_have_parts_of_the_bank_of_their_own(problem):
    where = {}
    each = lambda number, t, optimizer: where.update({name: tuple(t.places[name].state["runs"][0, 1:3].tolist()) for name in t.places})
    problem.learn("shapeshifter keep=0.5 groups=2 grouping=0.1", steps=20, each=each)
    (first, one), (second, two) = sorted(where.values())
    assert first == 0 and second == one and one + two == round(0.5 * (64 * 16 + 16 * 8))
