"""A trained classifier as a sparse Gaussian process: what its weights say, told by its outputs at a few inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from modicum.core.errors import ModelError
from modicum.data.splits import Batch
from modicum.learn.tasks import Task
from modicum.train.rows import stacked

# Inputs whose gradients are taken at once.
_TOGETHER = 64
# Share of a kernel's mean diagonal that keeps it invertible.
_JITTER = 1e-4


@dataclass(frozen=True)
class Dual:
    """The function-space view of a module at its weights, for each class of a task apart.

    The kernel is ``J(x) J(z)ᵀ / delta`` with ``J`` the gradient of a class's logit by all weights: a prior of precision ``delta`` on each. Over
    ``points``, inputs (count, ...), stand the dual sums ``alpha`` (classes, count) ``= Σ k(z, x) a(x)`` and ``beta`` (classes, count, count)
    ``= Σ k(z, x) b(x) k(x, z)``, with ``a`` what the log likelihood asks of a logit, plus ``b`` times the logit's own, and ``b`` its curvature
    ``p (1 - p)``.
    """

    task: Task
    points: torch.Tensor
    kernel: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor
    delta: float

    @classmethod
    def of(cls, module: nn.Module, task: Task, points: int, delta: float, seed: int) -> Dual:
        """Of a module trained on a task: ``points`` of its rows are drawn, and all of them summed. Raises ``ModelError`` for a language model."""
        if task.classes is None:
            raise ModelError("function space: the model must be a classifier, is a language model. Take clr.")
        chance = torch.Generator().manual_seed(seed)
        places = torch.randperm(len(task.train), generator=chance)[:points].sort().values
        chosen = stacked([task.train[place] for place in places.tolist()])[0]  # type: ignore[index]
        inside = gradients(module, task, chosen)
        kernel = torch.einsum("icp,jcp->cij", inside, inside) / delta
        empty = cls(task, chosen, kernel, torch.zeros(kernel.shape[:2]), torch.zeros(kernel.shape), delta)
        return empty.updated(module, task.train, inside)

    def updated(self, module: nn.Module, rows: Sequence[Batch], inside: torch.Tensor | None = None) -> Dual:
        """The same with more rows in the sums, without training: the dual update."""
        inside = gradients(module, self.task, self.points) if inside is None else inside
        alpha, beta = self.alpha.clone(), self.beta.clone()
        for start in range(0, len(rows), _TOGETHER):
            batch = stacked(rows[start : start + _TOGETHER])
            across = torch.einsum("icp,jcp->cij", inside, gradients(module, self.task, batch[0])) / self.delta  # type: ignore[index]
            with torch.no_grad():
                logits = self.task.logits(module, batch)
            wanted, curved = _asked(self.task, logits, batch[-1].reshape(-1))  # type: ignore[index]
            alpha += torch.einsum("cij,jc->ci", across, wanted + curved * logits)
            beta += torch.einsum("cij,jc,ckj->cik", across, curved, across)
        return Dual(self.task, self.points, self.kernel, alpha, beta, self.delta)

    def predicted(self, module: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance (rows, classes) of the logits of inputs (rows, ...).

        ``m(x) = k(x, z) (K + beta)⁻¹ alpha`` and ``v(x) = k(x, x) - k(x, z) [K⁻¹ - (K + beta)⁻¹] k(z, x)``, in float64.
        """
        inside, own = gradients(module, self.task, self.points), gradients(module, self.task, inputs)
        across = (torch.einsum("icp,jcp->cij", own, inside) / self.delta).double()
        itself = (own.square().sum(2) / self.delta).double()
        kernel = _settled(self.kernel.double())
        both = kernel + self.beta.double()
        mean = torch.einsum("cij,cj->ic", across, torch.linalg.solve(both, self.alpha.double()[..., None])[..., 0])
        gain = torch.linalg.solve(kernel, across.mT) - torch.linalg.solve(both, across.mT)
        return mean.float(), (itself - torch.einsum("cij,cji->ic", across, gain)).clamp(min=0).float()

    def precision(self) -> torch.Tensor:
        """How strongly logits at the points are held (classes, count, count): ``K⁻¹ beta K⁻¹``, positive semidefinite."""
        kernel = _settled(self.kernel.double())
        half = torch.linalg.solve(kernel, self.beta.double())
        found = torch.linalg.solve(kernel, half.mT)
        return ((found + found.mT) / 2).float()


def gradients(module: nn.Module, task: Task, inputs: torch.Tensor) -> torch.Tensor:
    """Gradients of a task's logits by all weights (rows, classes, weights), float32."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def answered(parameters: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
        found = functional_call(module, {**parameters, **buffers}, (one[None],))
        logits: torch.Tensor = getattr(found, "logits", found)[0].float()
        return logits if task.classes is None else logits[task.classes]

    parts = []
    for some in inputs.split(_TOGETHER):
        found = vmap(jacrev(answered), in_dims=(None, 0))(weights, some)
        parts.append(torch.cat([found[name].detach().reshape(*found[name].shape[:2], -1) for name in weights], 2))
    return torch.cat(parts)


def _asked(task: Task, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the log likelihood asks of each logit, and its curvature (rows, classes)."""
    assert task.classes is not None
    likely = logits.softmax(1)
    right = nn.functional.one_hot(torch.searchsorted(task.classes, labels), len(task.classes)).to(likely.dtype)
    return right - likely, likely * (1 - likely)


def _settled(kernel: torch.Tensor) -> torch.Tensor:
    mean = kernel.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    return kernel + _JITTER * mean[:, None, None] * torch.eye(kernel.shape[1], dtype=kernel.dtype)
