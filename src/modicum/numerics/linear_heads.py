"""Linear classifiers on features that are given: naive Bayes in closed form, and logistic regression."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def naive_bayes(features: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (classes, width) and bias (classes,) of Gaussian naive Bayes whose classes share the variance of each feature.

    ``log p(c | x) = mean_c / variance · x - mean_c² / (2 variance) + log share_c + const``: linear in the features (samples, width), so it is a head
    as any other. One pass, no settings. Variances are pooled over classes, with a hundredth of their mean added, so that one sample per class does;
    a class without samples gets a share of half a sample and the mean of all. Revisiting Discriminative vs. Generative Classifiers,
    arXiv:2302.02334.

        >>> weight, bias = naive_bayes(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]), 2)
        >>> (torch.tensor([[1.5], [3.0]]) @ weight.T + bias).argmax(1).tolist()
        [0, 1]
    """
    known = F.one_hot(labels, classes).to(torch.float64)
    wide, counts = features.double(), known.sum(0)
    means = torch.where(counts[:, None] > 0, known.T @ wide / counts.clamp_min(1)[:, None], wide.mean(0))
    within = (wide - means[labels]).square().sum(0)
    spread = len(wide) - int((counts > 0).sum())
    variance = within / spread if spread else (wide - wide.mean(0)).square().mean(0)
    variance = variance + 0.01 * variance.mean() + torch.finfo(torch.float64).tiny
    weight = means / variance
    bias = (counts.clamp_min(0.5) / len(wide)).log() - (means.square() / variance).sum(1) / 2
    return weight.float(), bias.float()


def logistic(
    features: torch.Tensor, labels: torch.Tensor, classes: int, decay: float = 1e-4, steps: int = 200
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (classes, width) and bias (classes,) of multinomial logistic regression, by L-BFGS.

    What is least is the mean loss and ``decay / 2`` times the squared weight. Features (samples, width) are centred and scaled inside; the head
    that is given takes them as they are.

        >>> weight, bias = logistic(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]), 2)
        >>> (torch.tensor([[1.0], [4.0]]) @ weight.T + bias).argmax(1).tolist()
        [0, 1]
    """
    middle, scale = features.double().mean(0), features.double().std(0, correction=0).clamp_min(1e-6)
    scaled = (features.double() - middle) / scale
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(scaled @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    plain = (weight / scale).detach()
    return plain.float(), (bias.detach() - plain @ middle).float()
