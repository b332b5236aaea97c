import pytest
import torch
from torch import nn

from modicum.train.lean import lean

LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, dilation=2), (2, 2, 5, 5, 5)),
    "turned": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, padding=1), (2, 4, 5, 5)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),
    "mirrored": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 5)),
    "norm": (lambda: nn.BatchNorm2d(4), (3, 4, 5, 5)),
    "plain norm": (lambda: nn.BatchNorm1d(4, affine=False), (3, 4, 5)),
    "unmeasured norm": (lambda: nn.BatchNorm1d(4, track_running_stats=False), (3, 4, 5)),
}


def graph(layer, x):
    """Output, the input's gradient, and the shapes that were kept for it."""
    kept, leaf = [], x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tuple(tensor.shape)), tensor)[1], lambda tensor: tensor):
        found = layer(leaf * 1)
    found.square().sum().backward()
    return found.detach(), leaf.grad, kept


@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradient_are_the_same_to_the_bit_and_the_input_is_let_go(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().eval().requires_grad_(False), torch.randn(shape)
    for buffer in layer.buffers():
        buffer.copy_(buffer + 1) if buffer.dim() else None
    plain, gradient, kept = graph(layer, x)
    with lean(layer):
        found, other, held = graph(layer, x)
    assert torch.equal(found, plain) and torch.equal(other, gradient)
    if name not in ("same", "mirrored", "unmeasured norm"):
        assert shape in kept and shape not in held
    assert "forward" not in layer.__dict__


@pytest.mark.parametrize("name", ["conv2d", "norm"])
def test_what_is_trained_keeps_its_input_and_gets_its_gradient(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().eval(), torch.randn(shape, requires_grad=True)
    layer(x).square().sum().backward()
    wanted = [each.grad.clone() for each in layer.parameters()]
    layer.zero_grad()
    with lean(layer):
        layer(x).square().sum().backward()
    assert all(torch.equal(each.grad, other) for each, other in zip(layer.parameters(), wanted))


def test_a_norm_in_training_measures():
    layer = nn.BatchNorm1d(3).requires_grad_(False)
    with lean(layer):
        layer(torch.randn(8, 3, requires_grad=True) + 5)
    assert float(layer.running_mean.min()) > 0.1
