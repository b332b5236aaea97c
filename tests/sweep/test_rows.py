"""Rows of inputs and of output gradients: of every layer their product, summed over positions, is the gradient of its weight."""

import pytest
import torch
from torch import nn

from modicum.models.structure import find_units
from modicum.models.weights import Weights
from modicum.sweep import collect
from modicum.sweep.collect import input_rows, output_rows

LAYERS = {
    "linear": (nn.Linear(5, 3), (2, 4, 5)),
    "strided": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 7, 6)),
    "dilated": (nn.Conv1d(3, 4, 3, dilation=2), (2, 3, 9)),
    "same": (nn.Conv2d(3, 4, (3, 5), padding="same"), (2, 3, 5, 5)),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 5, 5)),
    "reflect": (nn.Conv1d(3, 4, 3, padding=2, padding_mode="reflect"), (2, 3, 5)),
    "replicate": (nn.Conv3d(3, 4, 3, padding=1, padding_mode="replicate"), (2, 3, 3, 4, 5)),
    "volume": (nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1)), (2, 2, 3, 4, 5)),
    "one image": (nn.Conv2d(3, 4, 3, padding=1), (3, 5, 5)),
    "transposed": (nn.ConvTranspose1d(3, 4, 4, stride=2, padding=1), (2, 3, 5)),
    "transposed image": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (2, 3, 4, 5)),
    "transposed, dilated": (nn.ConvTranspose2d(3, 4, (3, 2), dilation=(2, 3), output_padding=(1, 2)), (2, 3, 4, 5)),
    "transposed volume": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 2, 3, 3)),
    "transposed, one image": (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 4, 5)),
}


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_product_of_rows_is_the_gradient(name, few, monkeypatch):
    if few:
        monkeypatch.setattr(collect, "_PATCHES", 100)
    layer, shape = LAYERS[name]
    (unit,) = find_units(layer, Weights(layer)).values()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer.weight.grad, output = None, layer(inputs)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(gradient)
    rows = torch.cat(list(input_rows(unit, layer, inputs)))
    found = torch.cat(list(output_rows(unit, layer, gradient))).T @ rows
    torch.testing.assert_close(found, unit.matrix(layer.weight.grad), rtol=1e-4, atol=1e-4)
