"""Rows of inputs and of output gradients: of every layer their product, summed over positions, is the gradient of its weight."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from modicum.core.blocks import spans
from modicum.core.method import Need
from modicum.models.structure import find_units
from modicum.models.weights import Weights
from modicum.sweep import patches
from modicum.sweep.collect import Collector, input_rows, output_rows
from modicum.sweep.shifts import Shifts

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
        monkeypatch.setattr(patches, "_PATCHES", 100)
    layer, shape = LAYERS[name]
    (unit,) = find_units(layer, Weights(layer)).values()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer.weight.grad, output = None, layer(inputs)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(gradient)
    rows = torch.cat(list(input_rows(unit, layer, inputs)))
    found = torch.cat(list(output_rows(unit, layer, gradient))).T @ rows
    torch.testing.assert_close(found, unit.matrix(layer.weight.grad), rtol=1e-4, atol=1e-4)


REPEATED = {
    "one axis": (nn.Conv1d(3, 4, 5), (2, 3, 50)),
    "tall": (nn.Conv2d(3, 4, (6, 1), padding=(2, 0)), (2, 3, 40, 2)),
    "image": (nn.Conv2d(3, 4, (2, 3), padding="same"), (2, 3, 9, 30)),
    "strided": (nn.Conv1d(3, 4, 8, stride=2, padding=1), (2, 3, 60)),
    "dilated": (nn.Conv1d(3, 4, 6, dilation=2), (2, 3, 60)),
    "both": (nn.Conv1d(3, 4, 7, dilation=2, stride=3), (2, 3, 120)),
    "volume": (nn.Conv3d(2, 3, (2, 4, 2), padding=1, padding_mode="replicate"), (1, 2, 3, 40, 3)),
    "lone image": (nn.Conv1d(3, 4, 5), (3, 50)),
}


@pytest.mark.parametrize("together", [None, 1])
@pytest.mark.parametrize("name", REPEATED)
def test_what_patches_have_in_common_is_summed_once(name, together):
    """The covariance by shifts is that of all patches, of several batches with places of different numbers."""
    layer, shape = REPEATED[name]
    (unit,) = find_units(layer, Weights(layer)).values()
    chance = torch.Generator().manual_seed(0)
    batches = [
        torch.randn(shape, generator=chance),
        torch.randn((*shape[:-2], shape[-2] + (len(shape) > 3), shape[-1] + 7), generator=chance),
    ]
    shifts, width = partial(Shifts.of, unit, layer, batches[0]), together and math.prod(layer.kernel_size)  # a channel in each block
    fast = Collector({Need.COVARIANCE}, unit.shape[1], shifts=shifts, together=width)
    plain = Collector({Need.COVARIANCE}, unit.shape[1], together=width)
    for batch in batches:
        fast.add_images(batch)
        for rows in input_rows(unit, layer, batch):
            fast.add(rows)
            plain.add(rows)
    assert fast._shifts and not plain._shifts
    found, expected = fast.stats(), plain.stats()
    for (_, square), (_, other) in zip(spans(found.moment), spans(expected.moment), strict=True):
        torch.testing.assert_close(square, other, rtol=1e-5, atol=1e-4)
        assert torch.equal(square, square.T)
    torch.testing.assert_close(found.square, expected.square, rtol=1e-5, atol=1e-4)
    assert torch.equal(found.total, expected.total) and found.count == expected.count


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 4, 4, stride=4), nn.Conv1d(3, 4, 1), nn.Conv1d(3, 4, 30), nn.Linear(40, 4)], ids=str)
def test_where_little_is_common_all_is_summed(layer):
    (unit,) = find_units(layer, Weights(layer)).values()
    assert Shifts.of(unit, layer, torch.randn(2, 3, 33)) is None
