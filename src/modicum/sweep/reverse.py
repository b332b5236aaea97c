"""Gradients of the output by a reverse sweep: block inputs are stored, blocks recomputed backward, one block in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from modicum.core.errors import ModelError, quoted
from modicum.core.unit import Unit
from modicum.data.splits import Batch, call, chance_of
from modicum.models.model import Model
from modicum.models.structure import kind_of
from modicum.numerics.gram import add_gram, mirror
from modicum.sweep.collect import has_rows, output_rows, token_rows
from modicum.sweep.experts import Use, Watch
from modicum.sweep.modes import seeded, unblocked, uncut
from modicum.sweep.outputs import likelihood
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.rehearsal import module_units
from modicum.sweep.script import Script
from modicum.sweep.spill import SpillPool

# Units of more rows have no gradient covariance: at this width one takes 64 MB.
WIDEST = 4096


@dataclass(frozen=True)
class Sensitivity:
    """How much the output feels a unit's output and weight, all per draw (token, image).

    ``gradient`` (rows,) is the sum over positions of squared output gradients, ``covariance`` (rows, rows) that of their outer products, of
    which ``gradient`` is the diagonal; ``square`` (columns,) the mean squared input. ``trace`` is the trace of the Fisher information of the
    unit's whole weight, ``weight`` (rows, columns) the information of each of its weights, of a unit that is felt through them alone;
    ``hessian`` that of the Hessian of the divergence (`sweep.curvature`, not collected here). What was not collected
    is None. For an embedding, which is looked up, ``gradient`` is (width,), ``covariance`` (width, width) and ``square`` None. ``table`` (width,
    width) says of every embedding how much the output feels an error ``e`` of an entry, ``e table eᵀ`` in the mean over entries and times their
    number: the second moment of the gradient in what is looked up, and where a head is tied to it that of the head's inputs times what its rows
    are felt.
    """

    gradient: torch.Tensor
    square: torch.Tensor | None
    covariance: torch.Tensor | None = None
    trace: float | None = None
    hessian: float | None = None
    weight: torch.Tensor | None = None
    table: torch.Tensor | None = None


def output_gradients(
    model: Model, batches: Sequence[Batch], script: Script, seed: int = 0, *, covariance: bool = False, widest: int = WIDEST,
    pool: SpillPool | None = None, ranks: Ranks = LONE, tick: Callable[[], None] = lambda: None,
) -> dict[str, Sensitivity]:  # fmt: skip
    """Sum over positions of the squared gradient of the output's log-likelihood, per draw, by unit and row: the diagonal Fisher of outputs.

    The gradient of the output is drawn (seeded) with the covariance that labels of the model's own distribution would give it, so that half the
    sum over rows of gradient × squared output error is the second-order KL per draw (token, image). For models without logits the gradient is
    that of random projections of the output, scaled so that the same sum is half the relative squared error. Units whose output is not one
    tensor, or that are never called, are absent; those whose module makes something else of them than a product with its input are felt through
    their weights, by the squared gradient of each weight. Of several ``ranks`` each takes its share of the batches, of the others' only a forward
    that draws their labels; all get the sums.

    With ``covariance`` the outer products ``Σ g gᵀ`` are summed too, for units of at most ``widest`` rows; the others keep their diagonal.
    The trace ``Σ |g|² |x|²`` over positions with gradient g and input x always comes along. It is the exact Fisher trace where each draw
    depends on one position of the unit (a classifier's linear layers). Neglected is what two positions of one input have in common,
    ``Σ_{s≠t} (g_s · g_t)(x_s · x_t)``, and for a tied weight the look-up: on the demo the trace of keys comes out up to 1.4 times and that of
    values down to 0.64 times of what it is, the others within 6 % (``sweep.curvature.fisher_traces`` leaves nothing out). Where inputs
    cannot be written as rows (a grouped convolution) it is None.

    *Shapes*: see ``Sensitivity``.

    *Needs and cost*: one block's weights in memory; two forwards and a backward through the activations. The trace costs O(rows + columns) a
    position. The covariance takes 4 · rows² bytes a unit, all of them until the end (``pool`` moves to files what exceeds its limit), and
    2 · rows² operations a position where the sweep itself takes 6 · rows · columns: 1.45 times the plain sweep on the demo.

    *Raises*: ``ModelError`` where the model cannot be differentiated.
    """
    collected = Reverse(model, script, torch.Generator().manual_seed(seed), widest if covariance else 0, pool or SpillPool(None))
    model.weights.load(model.trunk)
    for place, batch in enumerate(batches):
        if place % ranks.count == ranks.rank:
            collected.add(batch)
        else:
            collected.skip(batch)
        tick()
    collected.sum(ranks)
    return collected.found()


class Reverse:
    """Forwards and backwards of batches, one block's weights in memory, that collect what units' outputs feel."""

    def __init__(self, model: Model, script: Script, generator: torch.Generator, widest: int, pool: SpillPool):
        self.model, self.script, self.generator, self.widest, self.pool = model, script, generator, widest, pool
        self.units, self.modules = module_units(model), dict(model.module.named_modules())
        self.totals: dict[str, torch.Tensor] = {}
        self.traces: dict[str, torch.Tensor] = {}
        self.covariances: dict[str, torch.Tensor] = {}
        self.squares: dict[str, torch.Tensor] = {}
        self.counts: dict[str, torch.Tensor] = {}
        # Of embeddings: outer products of gradients where they are looked up, and of inputs where they are a head.
        self.looked: dict[str, torch.Tensor] = {}
        self.heads: dict[str, torch.Tensor] = {}
        self.draws = 0
        # A tied weight is felt at the head, where its rows are outputs; where no alias multiplies, at the look-up.
        self.felt: dict[str, str] = {}
        for name, unit in self.units.items():
            if unit.name not in self.felt or kind_of(self.modules[name]) != "embedding":
                self.felt[unit.name] = name
        # Units that are felt through their weights: the parameters of which gradients are taken, as each batch met them.
        self.direct = {unit.parameter: unit for unit in model.units.values() if script.by_weight(unit)}
        self.leaves: dict[str, list[torch.nn.Parameter]] = {}
        self.informations: dict[str, torch.Tensor] = {}
        self.experts = {(unit.module, unit.parameter, unit.expert): unit for unit in model.units.values() if unit.kind == "expert"}

    def found(self) -> dict[str, Sensitivity]:
        """What was collected, per draw."""
        return {name: self._per_draw(name) for name in self.totals} | {
            name: _through_weights(value / max(self.draws, 1)) for name, value in self.informations.items()
        }

    def _per_draw(self, name: str) -> Sensitivity:
        draws = max(self.draws, 1)
        total, count = self.squares.get(name), self.counts.get(name, torch.ones(()))
        covariance, trace = self.covariances.get(name), self.traces.get(name)
        return Sensitivity(
            self.totals[name] / draws,
            None if total is None else total / max(int(count), 1),
            None if covariance is None else mirror(covariance).div_(draws),  # in place: it may lie in a file
            None if trace is None else float(trace) / draws,
            table=self._table(name, draws),
        )

    def _table(self, name: str, draws: int) -> torch.Tensor | None:
        looked, head = self.looked.get(name), self.heads.get(name)
        found = None if looked is None else mirror(looked).div_(draws)
        if head is None:
            return found
        mine = mirror(head).mul_(self.totals[name].sum() / (draws * max(int(self.counts[name]), 1)))
        return mine if found is None else found.add_(mine)

    def sum(self, ranks: Ranks) -> None:
        """Add up what all ranks collected."""
        for part in ("totals", "traces", "covariances", "squares", "counts", "informations", "looked", "heads"):
            setattr(self, part, ranks.union(part, {name: value.cpu() for name, value in getattr(self, part).items()}))
        self.draws = sum(ranks.gather("draws", self.draws))

    def skip(self, batch: Batch) -> None:
        """Draw the labels of a batch that another rank has: those after it are then the same as in one process."""
        with self._patched(felt=False), self._chance(batch), torch.no_grad():
            self.loss(call(self.model.module, batch), batch)

    def add(self, batch: Batch) -> None:
        """A batch's forward and backward. Raises ``ModelError`` where it cannot be differentiated."""
        self.batch = batch
        with self._patched(), self._chance(batch), _frozen(self.model.module), self._felt_directly(), torch.enable_grad(), unblocked():
            try:
                loss, draws = self.loss(call(self.model.module, batch), batch)
                loss.backward()
            except RuntimeError as error:
                raise ModelError(
                    f"{self.model.name}: must be differentiable to weigh errors by gradients ({quoted(error)}). Use --harm error."
                ) from error
        self.draws += draws
        if self.script.carried:
            self.model.weights.release(name for block in self.model.blocks.values() for name in block.parameters)

    def loss(self, output: Any, batch: Batch) -> tuple[torch.Tensor, int]:
        """What is differentiated, summed over draws, and their number."""
        return likelihood(output, self.generator, self.script.outputs, batch)

    def _chance(self, batch: Batch) -> AbstractContextManager[None]:
        return seeded(chance_of(batch)) if self.script.draws else nullcontext()

    @contextmanager
    def _felt_directly(self) -> Iterator[None]:
        """Gradients of one batch's draws together: their squares have the mean of the draws' own, which have nothing in common."""
        self.leaves, before = {}, {}
        for name in self.direct:
            parameter = self.model.weights.parameter(name)
            before[name], parameter.grad = (parameter, parameter.grad), None
        self._want(self.model.trunk)
        # Where a GPU's own kernels run recurrent layers, they keep nothing to go back by outside training.
        recurrent = any(isinstance(module, torch.nn.RNNBase) for module in self.modules.values())
        try:
            with torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
                yield
            for name, leaves in self.leaves.items():
                unit, found = self.direct[name], [leaf.grad for leaf in leaves if leaf.grad is not None]
                if found:
                    self._directly(unit, unit.matrix(sum(part.to_dense().float() for part in found)))  # type: ignore[arg-type]
        finally:
            for leaf in (leaf for leaves in self.leaves.values() for leaf in leaves):
                leaf.requires_grad_(False)
            for parameter, gradient in before.values():
                parameter.grad = gradient
            self.leaves = {}

    def _directly(self, unit: Unit, gradient: torch.Tensor) -> None:
        """Add a batch's gradient (rows, columns) of a weight that is felt through itself."""
        self.informations[unit.name] = self.informations.get(unit.name, 0) + gradient.square()

    def _want(self, names: Iterable[str]) -> None:
        """Ask for gradients of the parameters that are there now and felt directly."""
        for name in self.direct.keys() & set(names):
            parameter = self.model.weights.parameter(name)
            parameter.requires_grad_()
            if not any(parameter is leaf for leaf in self.leaves.setdefault(name, [])):
                self.leaves[name].append(parameter)

    @contextmanager
    def _patched(self, felt: bool = True) -> Iterator[None]:
        units, stacks = (self.units, self.script.stacks) if felt else ({}, {})
        names = [*units, *stacks, *self.model.blocks]
        had = {name: self.modules[name].__dict__.get("forward") for name in names}
        try:
            for name in units:
                self.modules[name].forward = self._unit(name, self.modules[name].forward)
            for name in stacks:
                self.modules[name].forward = self._stack(name, self.modules[name].forward)
            for name in self.model.blocks:
                self.modules[name].forward = self._block(name, self.modules[name].forward)
            with uncut(self.model.module):
                yield
        finally:
            for name, before in had.items():
                if before is None:
                    self.modules[name].__dict__.pop("forward", None)
                else:
                    self.modules[name].forward = before

    def _block(self, name: str, original: Callable) -> Callable:
        weights, parameters = self.model.weights, self.model.blocks[name].parameters
        if self.script.carried:  # what it found on its modules is gone when it would be computed again
            return self._whole_block(parameters, original)

        def held(*args: Any, **kwargs: Any) -> Any:
            weights.load(parameters)
            self._want(parameters)
            try:
                return original(*args, **kwargs)
            finally:
                weights.release(parameters)

        return lambda *args, **kwargs: checkpoint(held, *args, use_reentrant=False, preserve_rng_state=self.script.draws, **kwargs)

    def _whole_block(self, parameters: Sequence[str], original: Callable) -> Callable:
        """A block whose graph stays as it is, and its weights with it."""

        def held(*args: Any, **kwargs: Any) -> Any:
            self.model.weights.load(parameters)
            self._want(parameters)
            return original(*args, **kwargs)

        return held

    def _unit(self, name: str, original: Callable) -> Callable:
        unit = self.units[name]

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if not isinstance(output, torch.Tensor) or not torch.is_grad_enabled():  # it will be computed anew where gradients are wanted
                return output
            if not output.requires_grad:
                output = output.detach().requires_grad_().clone()
            if self.felt[unit.name] == name and unit.parameter not in self.direct:
                norms = self._see(unit, name, args[0] if args else next(iter(kwargs.values())))
                owner = self.modules[name]
                output.register_hook(lambda gradient: self._keep(unit, output_rows(unit, owner, gradient.float()), norms))
            if kind_of(self.modules[name]) == "embedding" and unit.parameter not in self.direct:
                output.register_hook(lambda gradient: self._moment(self.looked, unit, gradient.float().flatten(0, -2)))
            return output

        return forward

    def _moment(self, moments: dict[str, torch.Tensor], unit: Unit, rows: torch.Tensor) -> None:
        """Add outer products of rows (positions, columns), where a square of that width is not too large."""
        if rows.shape[1] == unit.shape[1] <= WIDEST:
            if unit.name not in moments:
                moments[unit.name] = rows.new_zeros(unit.shape[1], unit.shape[1])
            add_gram(moments[unit.name], rows)

    def _stack(self, name: str, original: Callable) -> Callable:
        owner = self.modules[name]

        def hook(use: Use) -> None:
            unit = self.experts[name, self.model.weights.first[f"{name}.{use.attribute}"], use.expert]
            if use.output.requires_grad:
                norms = self._see(unit, name, use.inputs, routed=True)
                part = slice(None) if use.part is None else slice(use.part, use.part + 1)
                use.output.register_hook(lambda gradient: self._keep(unit, output_rows(unit, owner, gradient[part].float()), norms))

        def forward(*args: Any, **kwargs: Any) -> Any:
            stacks = {attribute: owner._parameters[attribute].detach() for attribute in self.script.stacks[name].attributes}
            with Watch(stacks, hook):
                return original(*args, **kwargs)

        return forward

    def _see(self, unit: Unit, name: str, inputs: torch.Tensor, *, routed: bool = False) -> torch.Tensor | None:
        """Squared norms (positions,) of a unit's inputs, added up by column too; one for all of a look-up; None where they are no rows.

        Padding counts as nothing, unless tokens have been ``routed`` to their experts: there its gradients alone are zeros.
        """
        module = self.modules[name]
        if kind_of(module) == "embedding":
            # Looked up: a one and zeros, whatever is looked up how often; a table of positions may be asked for by a shape.
            return torch.ones((), device=inputs.device if isinstance(inputs, torch.Tensor) else self.model.weights.device)
        # A tied embedding felt at its head has the inputs of a linear layer.
        if not inputs.is_floating_point() or unit.name in self.script.opaque or not (has_rows(unit, module) or unit.kind == "embedding"):
            return None
        norms = []
        cover = None if routed else self.script.masks.get(name)
        for rows, real in token_rows(cover, unit, module, self.batch, inputs.detach()):
            squares = rows.float().square()
            if real is not None:
                squares = squares.masked_fill(~real[:, None], 0.0)
            self.squares[unit.name] = self.squares.get(unit.name, 0) + squares.sum(0)
            self.counts[unit.name] = self.counts.get(unit.name, 0) + (torch.tensor(len(rows)) if real is None else real.sum().cpu())
            norms.append(squares.sum(1))
            if unit.kind == "embedding":
                self._moment(self.heads, unit, rows.float() if real is None else rows[real].float())
        return torch.cat(norms)

    def _keep(self, unit: Unit, pieces: Iterable[torch.Tensor], norms: torch.Tensor | None) -> None:
        """Add the gradients (positions, rows) of one call's outputs, piece by piece; ``norms`` (positions,) are those of its inputs, squared."""
        low = 0
        for gradients in pieces:
            high = low + len(gradients)
            self._add(unit, gradients, norms if norms is None or not norms.ndim else norms[low:high])
            low = high

    def _add(self, unit: Unit, gradients: torch.Tensor, norms: torch.Tensor | None) -> None:
        name, squares = unit.name, gradients.square()
        self.totals[name] = self.totals.get(name, 0) + squares.sum(0)
        if norms is not None:
            self.traces[name] = self.traces.get(name, 0) + (squares.sum(1) * norms).sum()
        if gradients.shape[1] <= self.widest:
            if name not in self.covariances:
                self.covariances[name] = gradients.new_zeros(gradients.shape[1], gradients.shape[1])
                self.pool.admit(self.covariances[name])
            add_gram(self.covariances[name], gradients)


@contextmanager
def _frozen(module: torch.nn.Module) -> Iterator[None]:
    """No parameter collects a gradient: only outputs are felt."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _through_weights(information: torch.Tensor) -> Sensitivity:
    return Sensitivity(information.sum(1), None, trace=float(information.double().sum()), weight=information)
