"""The coordinates in which ordinary text feels all directions alike."""

import pytest
import torch

from modicum.edit.curvature import Whitened, moments, whitening


@pytest.fixture
def layers(pupil):
    names = list(pupil.writable)[:5]
    return names, Whitened(pupil, names, {name: (whitening(g, 0.1), whitening(x, 0.1)) for name, (x, g) in moments(pupil, names).items()})


def test_whitening_makes_a_moment_the_identity():
    torch.manual_seed(0)
    x = torch.randn(50, 8)
    moment = x.T @ x / 50
    white = whitening(moment, 1e-6)
    assert torch.allclose(white @ moment @ white.T, torch.eye(8), atol=1e-3)


def test_moments_are_those_of_inputs(pupil):
    name = next(iter(pupil.layers))
    (found, _) = moments(pupil, [name])[name]
    assert torch.allclose(found, pupil.covariance(name), atol=1e-4 * float(found.abs().max()))


def test_the_gradient_is_that_of_the_whitened_numbers_and_nothing_is_left_behind(pupil, layers):
    names, white = layers
    before = {name: value.clone() for name, value in pupil.module.state_dict().items()}
    flat = 0.01 * torch.randn(white.size, generator=torch.Generator().manual_seed(0))
    ids = pupil.sequences[:2]
    ask = lambda: pupil.module(input_ids=ids, use_cache=False).logits.float().square().mean()
    with pupil.computing():
        with white.holding(flat) as gradient:
            ask().backward()
            found = gradient()
        step = 1e-2 * found / found.norm()
        values = []
        for sign in (1, -1):
            with white.holding(flat + sign * step), torch.no_grad():
                values.append(float(ask()))
        pupil.add(white.changes(flat))
        with torch.no_grad():
            beside = float(ask())
        with white.holding(torch.zeros(white.size)), torch.no_grad():
            assert float(ask()) == pytest.approx(beside, rel=1e-5), "changes beside the weights give what changes of the weights give"
    assert (values[0] - values[1]) / 2 == pytest.approx(float(found @ step), rel=0.05)
    assert all(torch.equal(value, before[name]) for name, value in pupil.module.state_dict().items())


def test_layers_that_nothing_calls_are_left_out(pupil):
    name = next(iter(pupil.layers))
    pupil.others = {**pupil.others, "unused.weight": torch.nn.Linear(4, 4)}
    assert list(moments(pupil, [name, "unused.weight"])) == [name]
