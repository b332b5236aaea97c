"""Rotation of the residual stream (QuaRot, arXiv 2404.00456; SpinQuant, arXiv 2405.16406): another basis, in which no column stands out.

What the blocks of a model add to and read from is a sum that no layer sees but through a norm. Where norms only divide by a length it may be
turned: with an orthogonal Q, gains g of norms and ``D = diag(g)``, weights that read it become ``W D Qᵀ``, those that write to it ``Q W``, and
outputs are what they were. Layer norms subtract a mean too; they commute with every Q that keeps the vector of ones, and their bias becomes
``Q D⁻¹ b``. Who reads and who writes is found by differentiation (`models.permutable`), whether a norm allows it by trying; what does not is
refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from modicum.core.errors import ModelError, listed
from modicum.data.splits import Batch, call, one_row
from modicum.judge.quality import compare, streamed
from modicum.measure.moving import with_values
from modicum.models.model import Model
from modicum.models.permutable import numberings
from modicum.numerics.threads import single_threaded
from modicum.runtime.compute import Compute
from modicum.sweep import Script
from modicum.sweep.coupling import shortened

KINDS = ("hadamard", "random")
# Tokens that show what feeds what, and the largest difference of outputs, of their largest magnitude, that float32 explains.
_TOKENS, _ROUNDING = 12, 1e-3


def rotated(
    model: Model, script: Script, batches: Sequence[Batch], kind: str, seed: int, compute: Compute
) -> tuple[Model, float, list[str]]:
    """The model with its residual stream turned, what rounding it to its own dtype loses, and what there is to tell.

    Needs and cost: the whole model in float32, with the gradients of one row of tokens. Raises ``ModelError`` where a norm forbids it, by its name.
    """
    stored = model.stored
    stream = _Stream(stored, shortened(one_row(batches[0]), _TOKENS))
    with torch.no_grad():
        values = stream.turned(kind, torch.Generator().manual_seed(seed))
    other = compute.of(with_values(stored, {name: value.to(stored.weights.dtype(name)) for name, value in values.items()}))
    rows = [one_row(batches[0])]
    before, after = (streamed(each.twin(), rows, script) for each in (model, other))
    quality = compare(before, after, rows, model.is_causal, script.outputs)
    return other, quality.worst.mean, [
        f"rotation: the stream of {stream.width} columns was turned ({kind}), gains of {len(stream.norms)} norms went into the weights that read "
        f"them; outputs are those of before but for rounding to {str(stored.dtype)[6:]} ({quality.metric} {quality.worst.mean:.1e})."
    ]  # fmt: skip


def orthogonal(width: int, kind: str, chance: torch.Generator, fixed: bool = False) -> torch.Tensor:
    """An orthogonal matrix (width, width) in float64: ``random``, of a Gaussian one; ``hadamard``, of random signs and Hadamard's, Kronecker a random
    one for what of the width is no power of two. ``fixed``: it keeps the vector of ones.
    """
    power = width & -width if kind == "hadamard" else 1
    with single_threaded():
        made, upper = torch.linalg.qr(torch.randn(width // power, width // power, generator=chance, dtype=torch.float64))
    made = made * upper.diagonal().sign()
    for _ in range(power.bit_length() - 1):
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)]) / math.sqrt(2)
    if power > 1:
        made = made * (2.0 * torch.randint(0, 2, (width,), generator=chance) - 1)
    if fixed:
        ones = torch.full((width,), 1 / math.sqrt(width), dtype=torch.float64)
        mirror = made @ ones - ones
        if float(mirror.norm()) > 1e-9:
            mirror /= mirror.norm()
            made = made - 2 * torch.outer(mirror, mirror @ made)
    return made


@dataclass(frozen=True)
class _Norm:
    """A norm of the stream: its vectors, the gain that multiplies by one, and the weights (name, axis) that read what it gives."""

    name: str
    gain: str
    bias: str | None
    neutral: float
    readers: tuple[tuple[str, int], ...]


class _Stream:
    """Which axes of which tensors lie in the residual stream, in a copy of the model in float32."""

    def __init__(self, model: Model, batch: Batch):
        self.model, self.batch = model, batch
        twin = model.twin()
        for name in twin.weights.names:
            value = twin.weights.read(name)
            twin.weights.put(name, value.to(torch.float32, copy=True) if value.is_floating_point() else value)
        self.module, self.modules = twin.module, dict(twin.module.named_modules())
        for parameter in self.module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self.values = {name: value.data for name, value in self.module.named_parameters(remove_duplicate=False)}
        self.first, self.names = twin.weights.first, twin.weights.names
        args, kwargs = ((), dict(batch)) if isinstance(batch, Mapping) else (tuple(batch), {})
        found = [each for each in numberings(self.module, *args, **kwargs) if all(member.index.shape[1] == 1 for member in each.members)]
        stream = max(found, key=lambda each: len(each.members), default=None)
        if stream is None or len(stream.members) < 4:
            raise ModelError(
                f"{model.name}: must have a stream that its blocks add to, none was found (tensors of several experts hide one). Leave it as it is."
            )
        self.width = stream.count
        self.axes = {(member.name, member.axis) for member in stream.members}
        self.outputs = self._outputs()
        self.norms = self._norms()

    @torch.no_grad()
    def _outputs(self) -> list[torch.Tensor]:
        found = tree_leaves(_plain(call(self.module, self.batch)))
        return [value.detach().clone() for value in found if isinstance(value, torch.Tensor) and value.is_floating_point()]

    def _norms(self) -> list[_Norm]:
        """Norms by the vectors of the stream, and who reads what they give."""
        owners = sorted({name.rpartition(".")[0] for name, _ in self.axes if self.values[name].ndim == 1})
        names = [name for name in owners if not any(value.ndim > 1 for value in self.modules[name].parameters(recurse=False))]
        given, made = dict[str, list[torch.Tensor]](), dict[str, torch.Tensor]()
        readers = {name.rpartition(".")[0]: (name, axis) for name, axis in self.axes if self._reads(name, axis)}
        hooks = []
        for name in {*names, *readers}:

            def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                given.setdefault(name, []).append(args[0])
                made[name] = output

            hooks.append(self.modules[name].register_forward_hook(note))
        with torch.no_grad():
            call(self.module, self.batch)
        for hook in hooks:
            hook.remove()
        return [
            self._norm(
                name, tuple(readers[reader] for reader in readers if any(_same(value, made.get(name)) for value in given.get(reader, ())))
            )
            for name in names
        ]

    def _reads(self, name: str, axis: int) -> bool:
        """Whether an axis of a tensor is that of a layer's inputs; of all others what is made has it."""
        owner = self.modules[name.rpartition(".")[0]]
        return name.endswith(".weight") and (
            (isinstance(owner, nn.Linear) and axis == 1) or (type(owner).__name__ == "Conv1D" and axis == 0)
        )

    def _norm(self, name: str, readers: tuple[tuple[str, int], ...]) -> _Norm:
        own = [key for key, _ in self.modules[name].named_parameters(recurse=False)]
        if not set(own) <= {"weight", "bias"} or "weight" not in own:
            raise self._refused(name, f"must have a weight and at most a bias, has {listed(own)}")
        gain, bias = f"{name}.weight", f"{name}.bias" if "bias" in own else None
        with self._with({gain: torch.zeros(self.width), **({bias: torch.zeros(self.width)} if bias else {})}):
            zero = not bool(self.modules[name](torch.linspace(1, 2, self.width)[None]).any())
        return _Norm(name, gain, bias, float(zero), readers)

    def turned(self, kind: str, chance: torch.Generator) -> dict[str, torch.Tensor]:
        """New values of all tensors of the stream, by their first names."""
        state = chance.get_state()
        matrix = orthogonal(self.width, kind, chance)
        if any(not self._commutes(norm, matrix) for norm in self.norms):
            matrix = orthogonal(self.width, kind, chance.set_state(state), fixed=True)
            for norm in self.norms:
                if not self._commutes(norm, matrix):
                    raise self._refused(norm.name, "must give turned inputs turned outputs, does not")
        values: dict[str, torch.Tensor] = {}
        for norm in self.norms:
            values |= self._folded(norm)
        gains = {norm.gain for norm in self.norms}
        for name, axis in sorted(self.axes):
            if self.first[name] == name and name not in gains:
                value = values.get(name, self.values[name]).double().movedim(axis, -1) @ matrix.T
                values[name] = value.movedim(-1, axis).float()
        with self._with(values):
            self._require_same(lambda: ModelError(
                f"{self.model.name}: outputs must stay what they are when the stream is turned, do not: something takes its columns one by one "
                f"(of {listed([norm.name for norm in self.norms])} none does). Leave the rotation out."
            ))  # fmt: skip
        return values

    def _commutes(self, norm: _Norm, matrix: torch.Tensor) -> bool:
        example = torch.randn(4, self.width, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, self.width)
        neutral = {norm.gain: torch.full((self.width,), norm.neutral)} | ({norm.bias: torch.zeros(self.width)} if norm.bias else {})
        with self._with(neutral):
            module, turn = self.modules[norm.name], matrix.float()
            plain, moved = module(example) @ turn.T, module(example @ turn.T)
        return bool(torch.allclose(plain, moved, rtol=1e-3, atol=1e-3 * float(plain.abs().max())))

    def _folded(self, norm: _Norm) -> dict[str, torch.Tensor]:
        """A norm's gain moved into its readers, and its bias divided by it. Raises ``ModelError`` where outputs do not stay."""
        gain = self.values[norm.gain].double() + (1 - norm.neutral)
        if bool((gain == 1).all()):
            return {}
        made = {norm.gain: torch.full((self.width,), norm.neutral)}
        if norm.bias:
            bias = self.values[norm.bias].double()
            if bool(((gain == 0) & (bias != 0)).any()):
                raise self._refused(norm.name, "must not have gains of zero beside a bias, has some")
            made[norm.bias] = torch.where(gain == 0, 0, bias / gain).float()
        for name, axis in norm.readers:
            if len(tied := self.names[self.first[name]]) > 1:
                other = next(each for each in tied if each != name)
                raise self._refused(
                    norm.name, f"must have gains of one where {name} reads it, which is tied to {other}, has others; untie them to rotate"
                )  # fmt: skip
            made[self.first[name]] = (self.values[self.first[name]].double().movedim(axis, -1) * gain).movedim(-1, axis).float()
        with self._with(made):
            self._require_same(lambda: self._refused(
                norm.name, "must give what it makes to weights alone that nobody else uses, so that its gains can move into them, does not"
            ))  # fmt: skip
        return made

    def _refused(self, norm: str, why: str) -> ModelError:
        return ModelError(f"{self.model.name}: {norm} {why}. Leave the rotation out.")

    def _require_same(self, error: Any) -> None:
        for before, after in zip(self.outputs, self._outputs()):
            if float((before - after).abs().max()) > _ROUNDING * float(before.abs().max()):
                raise error()

    @contextmanager
    def _with(self, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
        kept = {name: self.values[name].clone() for name in values}
        try:
            for name, value in values.items():
                self.values[name].copy_(value)
            yield
        finally:
            for name, value in kept.items():
                self.values[name].copy_(value)


def _plain(output: Any) -> Any:
    return output if not hasattr(output, "to_tuple") else output.to_tuple()


def _same(value: torch.Tensor, other: torch.Tensor | None) -> bool:
    """Whether two tensors hold the same memory, such as one and a view of all of it."""
    return other is not None and value.data_ptr() == other.data_ptr() and value.numel() == other.numel()
