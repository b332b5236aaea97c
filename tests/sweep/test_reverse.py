"""Gradients by recomputation equal those of one plain backward, and half the Fisher-weighted error predicts KL."""

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from modicum.models.open import open_model
from modicum.sweep import output_gradients, rehearse
from modicum.sweep.reverse import likelihood
from modicum.testing import zoo


def test_equal_to_plain_backward():
    module, batches = zoo.build("llama")
    model = open_model(module)
    found = output_gradients(model, batches[:1], rehearse(model, batches[0]), seed=3)
    name, squares = "model.layers.1.self_attn.o_proj", []
    hook = module.get_submodule(name).register_full_backward_hook(lambda _, __, out: squares.append(out[0].square().sum((0, 1))))
    loss, draws = likelihood(module(**batches[0]), torch.Generator().manual_seed(3))
    loss.backward()
    hook.remove()
    torch.testing.assert_close(found[f"{name}.weight"].gradient, squares[0] / draws, rtol=1e-4, atol=1e-7)


def test_small_errors_cost_the_predicted_kl():
    module, batches = zoo.build("llama")
    model = open_model(module)
    batch = {"input_ids": torch.randint(0, 256, (16, 32), generator=torch.Generator().manual_seed(0))}
    found = output_gradients(model, [batch], rehearse(model, batch), seed=0)
    name = "model.layers.2.mlp.down_proj"
    sensitivity, weight = found[f"{name}.weight"], module.get_submodule(name).weight
    rows = []
    hook = module.get_submodule(name).register_forward_pre_hook(lambda _, args: rows.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        before = module(**batch).logits.log_softmax(-1)
        hook.remove()
        error = 0.003 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        weight.add_(error)
        after = module(**batch).logits.log_softmax(-1)
    real = (before.exp() * (before - after)).sum(-1).mean()
    output = rows[0] @ error.T
    predicted = 0.5 * (output.square().mean(0) * sensitivity.gradient).sum()
    assert 0.5 < float(predicted / real) < 2.0


class Within(nn.Module):
    """Two maps, the first of them computed in a way of its own."""

    def __init__(self, way):
        super().__init__()
        self.first, self.second, self.way = nn.Linear(8, 8), nn.Linear(8, 8), way

    def forward(self, x):
        return self.second(self.way(self.first, x))


def still(mode):
    def way(layer, x):
        with mode():
            return layer(x).sigmoid()

    return way


def anew(layer, x):
    return checkpoint(lambda x: layer(x).sigmoid(), x.requires_grad_() if x.is_leaf else x, use_reentrant=True)


@pytest.mark.parametrize("way", [still(torch.no_grad), still(torch.inference_mode), anew])
def test_what_a_forward_keeps_from_gradients_is_felt_all_the_same(way):
    found, x = [], torch.randn(4, 8)
    for each in (still(contextlib.nullcontext), way):
        torch.manual_seed(0)
        model = open_model(Within(each).eval())
        found.append(output_gradients(model, [(x.clone(),)], rehearse(model, (x.clone(),)))["first.weight"].gradient)
    assert float(found[0].sum()) > 0
    torch.testing.assert_close(*found)
    with torch.no_grad(), torch.inference_mode():
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
