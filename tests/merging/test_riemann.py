"""The change of a loss told from gradients: exact for a quadratic one, near for a net's."""

import torch
from torch import nn

from modicum.merging.riemann import predicted


def test_what_is_predicted_comes():
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    x, y = torch.randn(20, 5), torch.randn(20, 3)
    before = {name: value.detach().clone() for name, value in module.state_dict().items()}
    after = {name: value + 0.5 * torch.randn(value.shape) for name, value in before.items()}
    loss = lambda call: (call(x) - y).square().mean()
    with torch.no_grad():
        first = float(loss(module))
        module.load_state_dict(after)
        change = float(loss(module)) - first
    assert abs(predicted(module, before, after, loss, 1) - change) < 1e-5 * abs(change)
