"""LSQ: what is trained on a grid is better than what is put on it afterwards, and steps are learnt."""

import torch

from modicum.core.parametrization import State, Step
from modicum.forms import Integer
from modicum.restrict import Lsq


def test_training_on_the_grid_beats_rounding_afterwards(problem):
    on, weights = problem.learn("lsq bits=2", steps=300)
    _, dense = problem.learn("dense", steps=300)
    rounded = {name: _nearest(weight) for name, weight in dense.items()}
    hidden = torch.tanh(problem.x @ rounded["0.weight"].T)
    after = (hidden @ rounded["2.weight"].T - problem.y).square().mean()
    assert on < 0.9 * after, (on, after)
    assert all(len(row.unique()) <= 4 for weight in weights.values() for row in weight)


def _nearest(weight):
    """Four levels per row at the step of least squared error."""
    best = None
    for share in torch.linspace(0.2, 1.0, 30):
        step = share * weight.abs().amax(1, keepdim=True)
        made = (weight / step).round().clamp(-2, 1) * step
        error = (made - weight).square().sum(1, keepdim=True)
        best = (error, made) if best is None else (torch.minimum(error, best[0]), torch.where(error < best[0], made, best[1]))
    return best[1]


def test_gradients_are_those_of_the_paper():
    method = Lsq(bits=3)
    latent, steps = torch.tensor([[0.9, -9.0, 5.0, 0.2]], requires_grad=True), torch.tensor([[1.0]], requires_grad=True)
    method.weight(None, State({"latent": latent, "steps": steps}), Step()).sum().backward()
    assert latent.grad.tolist() == [[1.0, 0.0, 0.0, 1.0]], "what is clipped has no gradient"
    wanted = ((1 - 0.9) + -4 + 3 + (0 - 0.2)) / (4 * 3) ** 0.5
    torch.testing.assert_close(steps.grad, torch.tensor([[wanted]]))


def test_bytes_are_codes_and_a_step_per_row():
    (form,) = Lsq(bits=4).outlines({"w": (8, 16)}).values()
    assert isinstance(form, Integer) and form.nbytes == 8 * 16 // 2 + 8 * 4
