"""Curvature by weight: products equal the exact Hessian, traces and eigenvalues those of its blocks, and half the form is the real KL."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modicum.core.errors import ModelError, SettingError
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.curvature import curvature_bytes, divergence, fisher_traces, hessian_product, hutchinson, top_eigenvalues
from modicum.testing import zoo


class Classifier(nn.Module):
    """Two small layers in double precision, with logits."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, x):
        return SimpleNamespace(logits=self.second(torch.tanh(self.first(x))))


class Fixed(nn.Module):
    """A linear layer whose loss has a diagonal Hessian: each output is one weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 4, bias=False)

    def forward(self, x):
        return self.layer(x)


@pytest.fixture
def classifier():
    """A model, two batches, and the exact Hessian over the weights of both layers, one after the other, for any loss of logits."""
    module = Classifier()
    batches = [{"x": torch.randn(7, 4, dtype=torch.float64)}, {"x": torch.randn(5, 4, dtype=torch.float64)}]
    x = torch.cat([batch["x"] for batch in batches])

    def exact(loss):
        first, second = module.first.weight, module.second.weight
        own = module(x).logits.detach()

        def value(flat):
            hidden = torch.tanh(x @ flat[:12].view(3, 4).T + module.first.bias)
            return loss(hidden @ flat[12:].view(3, 3).T + module.second.bias, own).mean()

        return torch.autograd.functional.hessian(value, torch.cat([first.detach().flatten(), second.detach().flatten()]))

    return open_model(module), batches, exact


def kl(logits, own):
    return (own.softmax(-1) * (own.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)


def columns(model, batches, **keywords):
    """The Hessian as products with all unit vectors."""
    found = []
    for index in range(21):
        vector = torch.eye(21, dtype=torch.float64)[index]
        vectors = {"first.weight": vector[:12].view(3, 4), "second.weight": vector[12:].view(3, 3)}
        products = hessian_product(model, batches, vectors, **keywords)
        found.append(torch.cat([products[name].flatten() for name in vectors]))
    return torch.stack(found, 1)


def test_products_are_the_exact_hessian_of_the_divergence(classifier):
    model, batches, exact = classifier
    torch.testing.assert_close(columns(model, batches), exact(kl), rtol=1e-9, atol=1e-12)


def test_products_are_the_exact_hessian_of_a_given_loss(classifier):
    model, batches, exact = classifier
    given = lambda output: (nn.functional.cross_entropy(output.logits, torch.zeros(len(output.logits), dtype=torch.long), reduction="sum"),
                            len(output.logits))  # fmt: skip
    wanted = exact(lambda logits, _: -logits.log_softmax(-1)[:, 0])
    torch.testing.assert_close(columns(model, batches, loss=given), wanted, rtol=1e-9, atol=1e-12)
    assert torch.linalg.eigvalsh(wanted)[0] < -1e-4, "unlike the divergence's it has negative eigenvalues"


@pytest.mark.parametrize("estimate", [hutchinson, fisher_traces])
def test_traces_tend_to_the_exact_ones(classifier, estimate):
    model, batches, exact = classifier
    diagonal = exact(kl).diagonal()
    found = estimate(model, batches, probes=3000)
    assert found["first.weight"] == pytest.approx(float(diagonal[:12].sum()), rel=0.03)
    assert found["second.weight"] == pytest.approx(float(diagonal[12:].sum()), rel=0.03)


def test_one_probe_is_exact_where_the_hessian_is_diagonal():
    module = Fixed()
    found = hutchinson(open_model(module), [{"x": torch.eye(5)}], probes=1)
    wanted = 4 * (1 / module.layer.weight.detach().square().sum(0)).sum() / 5  # half the relative squared change, five draws
    assert found["layer.weight"] == pytest.approx(float(wanted), rel=1e-5)


def test_eigenvalues_are_those_of_the_blocks(classifier):
    model, batches, exact = classifier
    hessian = exact(kl)
    found = top_eigenvalues(model, batches, iterations=500, tolerance=1e-9)
    assert found["first.weight"] == pytest.approx(float(torch.linalg.eigvalsh(hessian[:12, :12])[-1]), rel=1e-3)
    assert found["second.weight"] == pytest.approx(float(torch.linalg.eigvalsh(hessian[12:, 12:])[-1]), rel=1e-3)
    assert not model.notes


def test_eigenvalues_that_still_change_are_noted(classifier):
    model, batches, _ = classifier
    top_eigenvalues(model, batches, iterations=2, tolerance=1e-12)
    assert model.notes == ["top eigenvalues of 2 units still changed after 2 iterations"]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "qwen3_moe", "bert", "vit", "cnn", "mamba"])
def test_half_the_form_is_the_real_divergence(name):
    """Over all units at once: tied, transposed, stacked and grouped weights, in whatever attention."""
    module, batches = zoo.build(name)
    model, batch = open_model(module), batches[0]
    rehearse(model, batch)
    vectors = {unit.name: torch.randn(unit.shape) * model.matrix(unit).std() for unit in model.units.values()}
    products = hessian_product(model, [batch], vectors)
    step = 1e-3
    predicted = 0.5 * step**2 * sum(float((vectors[unit] * products[unit]).sum(dtype=torch.float64)) for unit in vectors)
    with torch.no_grad():
        before = module(**batch)
        for unit in model.units.values():
            unit.matrix(module.get_parameter(unit.parameter)).add_(vectors[unit.name], alpha=step)
        after = module(**batch)
    if hasattr(before, "logits"):
        real = kl(after.logits.double(), before.logits.double()).mean()
    else:
        real = 0.5 * ((after - before).square().sum(-1) / before.square().sum(-1)).mean()
    assert float(real) == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_two_ways_to_one_trace(name):
    module, batches = zoo.build(name)
    model = open_model(module)
    rehearse(model, batches[0])
    rows = [{"input_ids": row[None, :12]} for batch in batches[:2] for row in batch["input_ids"][:1]]
    second, first = hutchinson(model, rows, probes=25), fisher_traces(model, rows, probes=25)
    assert second.keys() == first.keys() <= model.units.keys()
    assert sum(second.values()) == pytest.approx(sum(first.values()), rel=0.1)
    assert min(first.values()) >= 0
    assert any("[" in unit for unit in first) == (name == "qwen3_moe")


def test_a_unit_alone_and_unused_units():
    module, batches = zoo.build("llama")
    model = open_model(module)
    name = "model.layers.0.mlp.up_proj.weight"
    assert hutchinson(model, batches[:1], [name], probes=1).keys() == {name}
    module.aside = nn.Linear(4, 4)
    model = open_model(module)
    assert "aside.weight" in model.units and "aside.weight" not in hutchinson(model, batches[:1], probes=1)
    assert "aside.weight" not in top_eigenvalues(model, batches[:1], ["aside.weight", name], iterations=2)


def test_hands_are_clean_and_chance_is_seeded():
    module, batches = zoo.build("llama")
    model = open_model(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    found = [hutchinson(model, batches[:1], seed=5, probes=1) for _ in range(2)]
    other = hutchinson(model, batches[:1], seed=6, probes=1)
    curvature_bytes(model, batches[0])
    assert found[0] == found[1] != other
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_a_checkpoint_is_read_and_not_loaded():
    model = open_model("demo")
    batch = {"input_ids": torch.arange(8)[None]}
    name = "model.layers.7.mlp.down_proj.weight"
    found = fisher_traces(model, [batch], [name], probes=1)[name]
    assert found > 0 and model.weights.held(name).device.type == "meta"
    assert curvature_bytes(model, batch) > 4 * model.parameters
    assert model.weights.held(name).device.type == "meta"


def test_bytes_are_near_those_of_the_graph():
    module, batches = zoo.build("llama")
    model, batch = open_model(module), {"input_ids": torch.randint(3, 256, (4, 64))}
    weights = 4 * (sum(p.numel() for p in module.parameters()) + 3 * sum(unit.size for unit in model.units.values()))
    two, four = (curvature_bytes(model, {"input_ids": batch["input_ids"][:rows]}) - weights for rows in (2, 4))
    assert four == pytest.approx(2 * two, rel=1e-3)
    seen = {}

    def keep(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    loss, _ = divergence(module(**batch))  # so that what is made once is made already
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = divergence(module(**batch))
        graph = torch.autograd.grad(loss, [p for p in module.parameters() if p.ndim > 1], create_graph=True)
    assert len(graph) and 0.3 < sum(seen.values()) / four < 1.0


class Once(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        return gradient * 2


def test_errors_say_what_to_do(classifier):
    model, batches, _ = classifier
    with pytest.raises(ModelError, match=r"unit 'frst.weight': must be one of Classifier, is not. Did you mean first.weight"):
        hutchinson(model, batches, ["frst.weight"])
    with pytest.raises(SettingError, match="probes must be at least 1, got 0"):
        hutchinson(model, batches, probes=0)
    with pytest.raises(ModelError, match=r"its loss must be finite to be differentiated, is not. Check"):
        hutchinson(model, [{"x": torch.full((1, 4), torch.inf, dtype=torch.float64)}])
    forward = Classifier.forward
    model.module.forward = lambda x: SimpleNamespace(logits=Once.apply(forward(model.module, x).logits))
    with pytest.raises(ModelError, match=r"Classifier: must be twice differentiable for its curvature \(.*marked as once differentiable"):
        hutchinson(model, batches)
