"""A random mask: the file holds its seed, and it is the baseline that others beat."""

import torch

from modicum.forms import Sparse
from modicum.restrict import Random


def test_the_file_holds_values_and_a_seed():
    (form,) = Random(keep=0.25).outlines({"w": (8, 16)}).values()
    assert isinstance(form, Sparse) and form.nbytes == 32 * 4, "no mask"


def test_places_are_drawn_alike_wherever_a_file_is_read(problem):
    _, weights = problem.learn("random keep=0.25", steps=3)
    _, again = problem.learn("random keep=0.25", steps=3)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert sum(int((weight != 0).sum()) for weight in weights.values()) == round(0.25 * (64 * 16 + 16 * 8))
