"""VeRA's claim: the shared matrices cost nothing in a file, and two vectors per layer are trained."""

import torch
from torch import nn

from modicum.train.trained import trained


def test_a_file_holds_two_vectors_per_layer_and_seeds():
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    with trained(model, "vera rank=16") as t:
        assert t.count == (40 + 16) + (8 + 16)
        assert {name: form.nbytes for name, form in t.forms().items()} == {"0.weight": 4 * 56, "1.weight": 4 * 24}
        one, two = (place.state.common for place in t.places.values())
        assert one is two, "both layers share the very tensors"


def test_layers_take_corners_of_one_matrix():
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    with trained(model, "vera rank=16") as t:
        for parameter in t.parameters():
            parameter.data.fill_(1.0)
        shared = t.places["0.weight"].state.common
        added = t.weight("1.weight") - model[1]._parameters.get("weight")
        torch.testing.assert_close(added, shared["left"][:8] @ shared["right"][:, :40], rtol=1e-4, atol=1e-5)
