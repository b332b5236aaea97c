"""FreezeNet: what is not trained is random, and a file holds no number of it."""

import torch

from modicum.forms import restore
from modicum.restrict import Freezenet


def test_few_trained_numbers_among_random_ones_learn(problem):
    frozen, weights = problem.learn("freezenet keep=0.1", steps=300)
    assert frozen < 0.2 * problem.y.square().mean()
    assert all(bool((weight != 0).all()) for weight in weights.values()), "what is not trained is random, not zero"


def test_the_file_holds_a_seed_a_mask_and_what_was_learnt(problem):
    kept = {}
    problem.learn("freezenet keep=0.1", steps=5, each=lambda number, t, optimizer: kept.update(t.forms()))
    _, weights = problem.learn("freezenet keep=0.1", steps=5)
    for name, form in kept.items():
        again = restore(form.describe(), {part: tensor.clone() for part, tensor in form.tensors().items()})
        assert torch.equal(again.dense(), weights[name])
    values = sum(form.values for form in kept.values())
    assert (
        values == round(0.1 * (64 * 16 + 16 * 8)) and sum(form.nbytes for form in kept.values()) == 4 * values + 64 * 16 // 8 + 16 * 8 // 8
    )
    assert Freezenet.draws
