"""What a reverse sweep collects beside squares: covariances of output gradients, and the Fisher trace of each weight."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modicum.models.open import open_model
from modicum.sweep import Sensitivity, output_gradients, rehearse
from modicum.sweep.reverse import likelihood
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


class Classifier(nn.Module):
    """Two layers with logits, one position an input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x):
        return SimpleNamespace(logits=self.second(torch.tanh(self.first(x))))


def swept(name, **keywords):
    module, batches = zoo.build(name)
    model = open_model(module)
    return model, output_gradients(model, batches, rehearse(model, batches[0]), **keywords)


def test_both_equal_a_plain_backward():
    module, batches = zoo.build("llama")
    model = open_model(module)
    found = output_gradients(model, batches[:1], rehearse(model, batches[0]), seed=3, covariance=True)
    name, seen = "model.layers.1.mlp.up_proj", {}
    layer = module.get_submodule(name)
    hooks = [
        layer.register_forward_hook(lambda _, args, out: seen.update(x=args[0].detach().flatten(0, 1))),
        layer.register_full_backward_hook(lambda _, __, out: seen.update(g=out[0].flatten(0, 1))),
    ]
    loss, draws = likelihood(module(**batches[0]), torch.Generator().manual_seed(3))
    loss.backward()
    for hook in hooks:
        hook.remove()
    sensitivity = found[f"{name}.weight"]
    torch.testing.assert_close(sensitivity.covariance, seen["g"].T @ seen["g"] / draws, rtol=1e-4, atol=1e-7)
    outer = torch.einsum("tr,tc->trc", seen["g"], seen["x"])
    assert sensitivity.trace == pytest.approx(float(outer.square().sum() / draws), rel=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "qwen3_moe", "gpt_oss", "cnn", "bert", "whisper"])
def test_the_diagonal_is_the_squared_gradient(name):
    model, found = swept(name, covariance=True)
    plain = swept(name)[1]
    assert found.keys() == plain.keys()
    for unit, sensitivity in found.items():
        assert torch.equal(sensitivity.gradient, plain[unit].gradient)
        if sensitivity.weight is not None:
            continue  # felt through the weight's own gradient, where its output is no tensor of its own
        assert plain[unit].covariance is None and plain[unit].trace == sensitivity.trace
        assert sensitivity.covariance.dtype == torch.float32
        scale = float(sensitivity.gradient.max())
        torch.testing.assert_close(sensitivity.covariance.diagonal(), sensitivity.gradient, rtol=1e-4, atol=1e-6 * scale)
        grouped = model.units[unit].groups > 1
        assert (sensitivity.trace is None) == grouped, "a grouped convolution's inputs are no rows"
    assert any("[" in unit for unit in found) == (name in ("qwen3_moe", "gpt_oss"))


def test_a_tied_weight_is_felt_at_its_head():
    model, found = swept("qwen2", covariance=True, widest=256)
    (name,) = [unit.name for unit in model.units.values() if unit.aliases]
    assert found[name].gradient.shape == (256,) and found[name].square.shape == (64,)
    scale = float(found[name].gradient.sum() * found[name].square.sum())  # what it were if gradients and inputs were independent
    assert found[name].trace == pytest.approx(scale, rel=0.2)


def test_an_embedding_is_felt_where_it_is_looked_up():
    model, found = swept("llama", covariance=True)
    sensitivity = found["model.embed_tokens.weight"]
    assert sensitivity.trace == pytest.approx(float(sensitivity.gradient.sum()), rel=1e-5)
    assert sensitivity.covariance.shape == (64, 64)


def test_wide_units_keep_their_diagonal():
    model, found = swept("llama", covariance=True, widest=64)
    for unit, sensitivity in found.items():
        rows = len(sensitivity.gradient)
        assert (sensitivity.covariance is None) == (rows > 64), unit
    assert {len(sensitivity.gradient) for sensitivity in found.values()} > {64}


def test_a_pool_changes_where_and_not_what(tmp_path):
    pool = SpillPool(0, tmp_path)
    filed, held = swept("llama", covariance=True, pool=pool)[1], swept("llama", covariance=True)[1]
    assert pool.spilled > 0
    assert all(torch.equal(filed[unit].covariance, held[unit].covariance) for unit in held)


def test_the_trace_is_the_fisher_trace_of_one_position():
    """Exact, with the mean over labels written out: Σ_y p_y |∇_W log p_y|²."""
    module, x = Classifier(), torch.randn(4000, 12)
    model = open_model(module)
    found = output_gradients(model, [{"x": x}], rehearse(model, {"x": x}), seed=0, covariance=True)
    with torch.no_grad():
        hidden = torch.tanh(module.first(x))
        p = module.second(hidden).softmax(-1)
        felt = p[:, :, None] * (torch.eye(5) - p[:, None, :]).square()  # of one label each: p_y (1{k = y} - p_k)²
        exact = (felt.sum((1, 2)) * hidden.square().sum(1)).mean()
        covariance = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    assert found["second.weight"].trace == pytest.approx(float(exact), rel=0.05)
    torch.testing.assert_close(found["second.weight"].covariance, covariance, rtol=0.05, atol=0.01)


def test_what_was_stored_before_is_still_a_sensitivity():
    stored = Sensitivity(torch.ones(3), None)
    assert stored.covariance is None and stored.trace is None and stored.hessian is None
