"""Second derivatives by weight, for models that fit in memory: traces and top eigenvalues of the divergence's Hessian, unit by unit.

The divergence is that from the model's own outputs. At the original weights its gradient is zero and its Hessian is the Fisher information,
so half its quadratic form is the second-order KL in nats; a loss on given labels would add the curvature of what the model gets wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel

from modicum.core.errors import ModelError, SettingError, near, quoted
from modicum.core.unit import Unit
from modicum.data.splits import Batch, call, count_rows, one_row, placed
from modicum.models.model import Model
from modicum.sweep.outputs import Outputs, divergence, likelihood
from modicum.sweep.rehearsal import use_eager_experts

# A scalar summed over draws (tokens, images), and their number, from a model's output.
Loss = Callable[[Any], tuple[torch.Tensor, int]]
Tensors = dict[str, torch.Tensor]

# Bytes of the graph through both derivatives, per byte that the forward keeps: 4 to 7.3 measured on twelve architectures.
_GRAPH = 7.5


def hutchinson(
    model: Model, batches: Sequence[Batch], units: Iterable[str] | None = None, *, seed: int = 0, probes: int = 4, loss: Loss = divergence
) -> dict[str, float]:
    """Trace of the Hessian of the mean loss per draw, by unit: Hutchinson's estimate.

    With signs v drawn at random for all weights at once, ``E[v_i · (H v)_i] = tr H_ii`` for every unit i, so one Hessian-vector product
    serves all units. Every batch gets ``probes`` signs of its own, so more and smaller batches are worth as much as more probes. All
    positions of an input are in it with what they have in common, and tied weights with all their uses; experts of a stack are units of
    the model once a rehearsal has seen them.

    *Shapes*: traces are sums over all weights of a unit; divided by ``unit.size`` they are the average eigenvalue.

    *Needs and cost*: the whole model in float32 and one batch's graph of two derivatives in memory (``curvature_bytes``); a forward and its
    gradient per batch, and about as long again for each probe. The standard error of one product is at most the square root of
    ``2 Σ_{j,k} H_jk²`` over weights j of the unit and k of all units: a unit of little trace among large ones needs many probes. Weights
    that no output depends on are absent.

    *Reduces to* the exact trace with a single probe where the Hessian is diagonal.

    *Raises*: ``ModelError`` where a unit is not known or the model cannot be differentiated twice.

    *Differences from the paper*: HAWQ-V2 takes the training loss at given labels, batch by batch over training data, with the same probe.
    """
    surface, generator = _Surface(model, units, loss), torch.Generator().manual_seed(seed)

    def measure(batch: Batch) -> tuple[dict[str, float], int]:
        gradients, draws = surface.gradients(batch)
        found = [surface.probe(gradients, generator) for _ in range(_positive(probes, "probes"))]
        return {name: sum(values[name] for values in found) / probes for name in found[0]}, draws

    return _mean(batches, measure)


def fisher_traces(
    model: Model, batches: Sequence[Batch], units: Iterable[str] | None = None, *, seed: int = 0, probes: int = 4,
    outputs: Outputs | None = None,
) -> dict[str, float]:  # fmt: skip
    """Trace of the Hessian of the mean divergence per draw, by unit, from first derivatives alone.

    That Hessian is the Fisher information. For labels drawn from the model, ``|∇ log p|²`` of a whole batch has its trace as expectation: the
    scores of different draws have mean zero and nothing in common. ``hutchinson`` estimates the same number by second derivatives; this one
    is never negative and takes no chance from other units. On the demo a probe of it strays up to 14 times less.

    *Needs and cost*: the whole model in float32 and one batch's forward graph in memory; a forward per batch, and a backward per probe. More
    and smaller batches are worth as much as more probes.

    *Raises*: ``ModelError`` where a unit is not known or the model cannot be differentiated.
    """
    surface, generator = _Surface(model, units, divergence, outputs), torch.Generator().manual_seed(seed)

    def measure(batch: Batch) -> tuple[dict[str, float], int]:
        output = surface.output(batch)
        found = [surface.score(output, generator) for _ in range(_positive(probes, "probes"))]
        return {name: sum(values[name] for values, _ in found) / probes for name in found[0][0]}, found[0][1]

    return _mean(batches, measure)


def top_eigenvalues(
    model: Model, batches: Sequence[Batch], units: Iterable[str] | None = None, *, seed: int = 0, iterations: int = 30,
    tolerance: float = 1e-3, loss: Loss = divergence, outputs: Outputs | None = None,
) -> dict[str, float]:  # fmt: skip
    """Largest eigenvalue of each unit's block of the Hessian of the mean loss per draw, by power iteration.

    ``v ← H_ii v / |H_ii v|`` from a random start; the value is the Rayleigh quotient ``v · H_ii v``, which for a Hessian without negative
    eigenvalues grows to the largest from below. A unit is done when what its changes still promise, shrinking as the last did, is less than
    ``tolerance`` of the value; where some are not after ``iterations``, a note of the model says how many. With another loss it is
    the eigenvalue largest in magnitude.

    *Needs and cost*: as ``hutchinson``, but a product per unit, since one vector through all of them would mix their blocks: an iteration takes
    a forward and gradient per batch, shared by all units, and for each unit not yet done a backward through the part of that graph
    behind it, on the demo a third of the gradient's time in the mean. Name the ``units`` that matter, or give few tokens. Two vectors of
    each unit's size.

    *Raises*: ``ModelError`` where a unit is not known or the model cannot be differentiated twice.

    *Differences from the paper*: HAWQ has the eigenvalue of a block of layers at given labels; here each unit has its own.
    """
    surface, generator = _Surface(model, units, loss, outputs), torch.Generator().manual_seed(seed)
    moving = {name: surface.random(unit, generator) for name, unit in surface.units.items()}
    values: dict[str, list[float]] = {}
    for _ in range(_positive(iterations, "iterations")):
        products = surface.blocks(batches, moving)
        for name, product in products.items():
            values.setdefault(name, []).append(_dot(moving[name], product))
        moving = {
            name: product / product.norm().clamp_min(1e-30) for name, product in products.items() if not _settled(values[name], tolerance)
        }
        if not moving:
            break
    else:
        model.notes.append(f"top eigenvalues of {len(moving)} units still changed after {iterations} iterations")
    return {name: found[-1] for name, found in values.items()}


def _settled(values: Sequence[float], tolerance: float) -> bool:
    """Whether the changes, if they go on to shrink as the last did, add up to less than ``tolerance`` of the value."""
    if len(values) < 3:
        return False
    before, change = abs(values[-2] - values[-3]), abs(values[-1] - values[-2])
    ahead = change * change / (before - change) if change < before else change
    return max(change, ahead) <= tolerance * abs(values[-1])


def hessian_product(
    model: Model, batches: Sequence[Batch], vectors: Mapping[str, torch.Tensor], *, loss: Loss = divergence
) -> dict[str, torch.Tensor]:
    """Hessian of the mean loss per draw times one vector over the weights of the units named in ``vectors``.

    *Shapes*: each vector and each product (rows, columns), as the unit's matrix.

    *Needs and cost*: as one probe of ``hutchinson``.

    *Raises*: ``ModelError`` where a unit is not known or the model cannot be differentiated twice.
    """
    surface = _Surface(model, vectors, loss)
    joint = surface.stored(vectors)

    def measure(batch: Batch) -> tuple[Tensors, int]:
        gradients, draws = surface.gradients(batch)
        return surface.products(gradients, joint), draws

    found = _mean(batches, measure)
    return {name: unit.matrix(found[unit.parameter]) for name, unit in surface.units.items()}


class _Surface:
    """The summed loss of a batch as a function of the chosen units' weights, in single precision or better."""

    def __init__(self, model: Model, units: Iterable[str] | None, loss: Loss, outputs: Outputs | None = None):
        use_eager_experts(model)
        self.outputs = outputs or Outputs()
        self.model, self.loss, self.units = model, loss, chosen(model, units)
        wanted = {unit.parameter for unit in self.units.values()}
        values = {name: _full(model.weights.read(name)).detach() for name in model.weights.names}
        self.leaves = {name: values[name].requires_grad_() for name in values if name in wanted}
        self.state = {alias: values[name] for name, aliases in model.weights.names.items() for alias in aliases}
        self.state |= {name: _full(buffer).cpu() for name, buffer in model.module.named_buffers(remove_duplicate=False)}

    def output(self, batch: Batch) -> Any:
        """The model's output, with its graph."""
        # Fused attention has no second derivative; the plain one is made of operations that have.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), self._refusals():
            self.batch = batch
            return call(self._forward, _full_batch(batch))

    def derive(self, loss: Callable[[], tuple[torch.Tensor, int]], *, twice: bool) -> tuple[Tensors, int]:
        """Gradients by parameter, of the parameters that the loss depends on, and the number of draws; the graph stays."""
        with torch.enable_grad(), self._refusals():
            value, draws = loss()
            into = list(self.leaves.values())
            found = torch.autograd.grad(value, into, retain_graph=True, create_graph=twice, allow_unused=True)
        if not torch.isfinite(value):
            raise ModelError(f"{self.model.name}: its loss must be finite to be differentiated, is not. Check the weights and the batches.")
        return {name: gradient for name, gradient in zip(self.leaves, found) if gradient is not None}, draws

    def gradients(self, batch: Batch) -> tuple[Tensors, int]:
        """Gradients of the batch's loss that can be differentiated again, and the number of draws."""
        output = self.output(batch)
        ours = partial(divergence, outputs=self.outputs, batch=batch) if self.loss is divergence else self.loss
        found, draws = self.derive(lambda: ours(output), twice=True)
        with self._refusals():
            _require_twice(found.values())
        return found, draws

    def score(self, output: Any, generator: torch.Generator) -> tuple[dict[str, float], int]:
        """Squared norm of the score of labels drawn from the output, by unit, and the number of draws."""
        gradients, draws = self.derive(lambda: likelihood(output, generator, self.outputs, self.batch), twice=False)
        return {unit.name: _dot(unit.matrix(gradients[unit.parameter])) for unit in self.felt(gradients)}, draws

    def random(self, unit: Unit, generator: torch.Generator) -> torch.Tensor:
        """A vector of length one over a unit's weights, without a preferred direction."""
        vector = torch.randn(unit.shape, generator=generator).to(self.leaves[unit.parameter])
        return vector / vector.norm()

    def probe(self, gradients: Tensors, generator: torch.Generator) -> dict[str, float]:
        """One probe of each unit's trace: signs times the Hessian's product with the signs of all units."""
        signs = {name: _signs(self.leaves[name], generator) for name in gradients}
        products = self.products(gradients, signs)
        units = self.felt(gradients)
        return {unit.name: _dot(unit.matrix(signs[unit.parameter]), unit.matrix(products[unit.parameter])) for unit in units}

    def products(self, gradients: Tensors, vectors: Tensors) -> Tensors:
        """Hessian times the vectors by parameter, over those of ``vectors`` alone; the graph stays."""
        felt = [name for name in vectors if name in gradients and gradients[name].requires_grad]
        found: Sequence[torch.Tensor | None] = ()
        if felt:
            into = [self.leaves[name] for name in vectors]
            weights = [vectors[name] for name in felt]
            with self._refusals():
                found = torch.autograd.grad([gradients[name] for name in felt], into, weights, retain_graph=True, allow_unused=True)
        zeros = {name: torch.zeros_like(vector) for name, vector in vectors.items()}
        return zeros | {name: product for name, product in zip(vectors, found) if product is not None}

    def blocks(self, batches: Sequence[Batch], vectors: Mapping[str, torch.Tensor]) -> Tensors:
        """Each unit's own block of the mean Hessian times its vector (rows, columns); absent where the loss does not depend on it."""

        def measure(batch: Batch) -> tuple[Tensors, int]:
            gradients, draws = self.gradients(batch)
            return {unit.name: self._own(gradients, unit, vectors[unit.name]) for unit in self.felt(gradients, vectors)}, draws

        return _mean(batches, measure)

    def _own(self, gradients: Tensors, unit: Unit, vector: torch.Tensor) -> torch.Tensor:
        return unit.matrix(self.products(gradients, self.stored({unit.name: vector}))[unit.parameter]).clone()

    def felt(self, gradients: Tensors, among: Iterable[str] | None = None) -> list[Unit]:
        """Chosen units (or those ``among`` them) that the loss depends on."""
        units = self.units.values() if among is None else [self.units[name] for name in among]
        return [unit for unit in units if unit.parameter in gradients]

    def stored(self, vectors: Mapping[str, torch.Tensor]) -> Tensors:
        """Vectors by parameter from those by unit (rows, columns); zero on experts of a stack that have none."""
        found: Tensors = {}
        for name, vector in vectors.items():
            unit = self.units[name]
            unit.matrix(found.setdefault(unit.parameter, torch.zeros_like(self.leaves[unit.parameter]))).copy_(vector)
        return {name: value.detach() for name, value in found.items()}

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model.module, self.state, args, kwargs, tie_weights=False)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ModelError(
                f"{self.model.name}: must be twice differentiable for its curvature ({quoted(error)}). Use a harm without second derivatives."
            ) from error


def chosen(model: Model, units: Iterable[str] | None) -> dict[str, Unit]:
    """The named units, all by default. Raises ``ModelError`` for a name that is not known."""
    names = list(model.units) if units is None else list(units)
    if unknown := next((name for name in names if name not in model.units), None):
        raise ModelError(f"unit {unknown!r}: must be one of {model.name}, is not. {near(unknown, model.units)}")
    return {name: model.units[name] for name in names}


def curvature_bytes(model: Model, batch: Batch, units: Iterable[str] | None = None) -> int:
    """Bytes of memory that ``hutchinson`` is expected to take with batches like ``batch``; of one row it is the smallest possible.

    Weights in float32, three vectors of the chosen units' sizes, and the graph: what one row's forward keeps for its gradient, times the rows
    and the 7.5 times that a graph of two derivatives takes at most. Recurrences written as loops (Mamba without its kernels) take up
    to 28 times, which is not in it.

    *Needs and cost*: one forward of one row, with one block's weights in memory.

    *Raises*: ``ModelError`` where a unit is not known; ``DataError`` where a batch cannot be cut into rows.
    """
    parameters = {unit.parameter for unit in chosen(model, units).values()}
    numbers = {name: model.weights.held(name).numel() for name in model.weights.names}
    weights = 4 * (sum(numbers.values()) + 3 * sum(numbers[name] for name in parameters))
    row = one_row(batch)
    alone = {key: value.clone() for key, value in row.items()} if isinstance(row, dict) else tuple(value.clone() for value in row)
    return weights + int(_GRAPH * count_rows(batch) * _graph_bytes(model, alone, parameters))


def _graph_bytes(model: Model, batch: Batch, parameters: set[str]) -> int:
    """Bytes that a forward keeps for the gradient of ``parameters``, in float32, each storage once and weights left out."""
    seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def count(tensor: torch.Tensor, width: int | None = None) -> Any:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)  # while it lives, no other storage gets its number
        wide = max(4, tensor.itemsize) if tensor.is_floating_point() else tensor.itemsize
        seen.setdefault(reference.cdata, (reference, storage.nbytes() // tensor.itemsize * (wide if width is None else width)))

    with (
        _block_by_block(model, parameters, lambda weight: count(weight, 0)), sdpa_kernel(SDPBackend.MATH), torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing),
    ):  # fmt: skip
        divergence(call(model.module, batch))
    return sum(size for _, size in seen.values())


@contextmanager
def _block_by_block(model: Model, parameters: set[str], loaded: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Forwards load each block as they enter it and free it behind; the named parameters alone want gradients meanwhile."""
    wanted = {name: model.module.get_parameter(name).requires_grad for name in model.weights.names}

    def load(names: Iterable[str]) -> None:
        model.weights.load(names)
        for name in names:
            loaded(model.module.get_parameter(name).requires_grad_(name in parameters).detach())

    hooks = []
    load(model.trunk)
    for name, block in model.blocks.items():
        owner, names = model.module.get_submodule(name), block.parameters
        hooks.append(owner.register_forward_pre_hook(lambda *_, names=names: load(names)))
        hooks.append(owner.register_forward_hook(lambda *_, names=names: model.weights.release(names)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, before in wanted.items():
            model.module.get_parameter(name).requires_grad_(before)


def _require_twice(gradients: Iterable[torch.Tensor]) -> None:
    """Raise where a function marked as differentiable once stands in the graph: off the way to the weights it would be passed over silently."""
    nodes = [gradient.grad_fn for gradient in gradients if gradient.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == "Error":
            raise RuntimeError("a function of it is marked as once differentiable")
        after = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= after
        nodes += after


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor


def _full_batch(batch: Batch) -> Batch:
    full = placed(batch, "cpu")
    return {key: _full(value) for key, value in full.items()} if isinstance(full, dict) else tuple(_full(value) for value in full)


def _signs(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8) * 2 - 1).to(like)


def _dot(one: torch.Tensor, other: torch.Tensor | None = None) -> float:
    return float((one * (one if other is None else other)).sum(dtype=torch.float64))


def _mean(batches: Sequence[Batch], measure: Callable[[Batch], tuple[dict[str, Any], int]]) -> dict[str, Any]:
    """What ``measure`` sums over the draws of each batch, per draw; nothing of one batch is held through the next."""
    totals: dict[str, Any] = {}
    draws = 0
    for batch in batches:
        found, count = measure(batch)
        totals.update({name: totals[name] + value if name in totals else value for name, value in found.items()})
        draws += count
    return {name: total / max(draws, 1) for name, total in totals.items()}


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise SettingError(f"curvature: {name} must be at least 1, got {value}. Give a positive number.")
    return value
