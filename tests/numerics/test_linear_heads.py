import numpy as np
import torch

from modicum.numerics.linear_heads import logistic, naive_bayes


def drawn(count, seed=0, width=6, classes=3):
    chance = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(classes, (count,), generator=chance)
    return means[labels] + torch.randn(count, width, generator=chance), labels


def test_naive_bayes_is_the_density_of_each_class_said_slowly():
    x, y = drawn(200)
    weight, bias = naive_bayes(x, y, 3)
    within = np.concatenate([x[y == c].numpy() - x[y == c].numpy().mean(0) for c in range(3)])
    variance = (within**2).sum(0) / (len(x) - 3)
    variance = variance + 0.01 * variance.mean()
    for row in x[:5].numpy():
        scores = []
        for c in range(3):
            mean = x[y == c].numpy().mean(0)
            scores.append(np.log((y == c).float().mean().item()) - ((row - mean) ** 2 / variance).sum() / 2)
        found = (torch.tensor(row) @ weight.T + bias).numpy()
        np.testing.assert_allclose(found - found[0], np.array(scores) - scores[0], rtol=2e-3, atol=2e-3)


def test_a_class_without_samples_or_with_one_is_no_trouble():
    x, y = drawn(3)
    weight, bias = naive_bayes(x[:2], torch.tensor([0, 1]), 4)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    assert (x[:2] @ weight.T + bias).argmax(1).tolist() == [0, 1]


def test_logistic_regression_stands_where_its_loss_has_no_slope():
    x, y = drawn(150)
    weight, bias = logistic(x, y, 3, decay=0.1)
    scale = x.double().std(0, correction=0)
    weight, bias = weight.double().requires_grad_(), bias.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x.double() @ weight.T + bias, y) + 0.05 * (weight * scale).square().sum()
    assert max(float(slope.abs().max()) for slope in torch.autograd.grad(loss, (weight, bias))) < 1e-4


def test_both_are_nearly_as_good_as_can_be_on_many_samples():
    x, y = drawn(2000)
    held, labels = drawn(2000, seed=1)
    right = [
        float(((held @ weight.T + bias).argmax(1) == labels).float().mean()) for weight, bias in (naive_bayes(x, y, 3), logistic(x, y, 3))
    ]
    assert min(right) > 0.95 and abs(right[0] - right[1]) < 0.01
