"""A model as editors see it: what flows into the layers that they write, what a loss asks of their outputs, and changes that count at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from modicum.adapt._added import widths
from modicum.adapt.codebook import Codebook
from modicum.core.errors import DataError, ModelError
from modicum.core.parametrization import State
from modicum.edit.rows import IGNORED, Rows
from modicum.numerics.gram import add_gram, mirror

# Sequences that run at once.
TOGETHER = 64
# Sequences of protected text that outputs are felt on.
FELT = 24


@dataclass(frozen=True)
class Seen:
    """Of one layer at chosen places: its inputs ``keys`` (places, columns) and what a loss asks of its outputs, ``gradients`` (places, rows)."""

    keys: torch.Tensor
    gradients: torch.Tensor


@dataclass(eq=False)
class Taught:
    """A causal language model that computes with changes beside its weights, which stay as they are in whatever form they are stored.

    ``layers`` are the modules that facts are located in, by the name of their weight and in call order, ``others`` more that may be written, and
    ``blocks`` the module of the block of each layer.
    ``changes`` (rows, columns) float32 by that name are added to what a layer gives, and ``shift`` is called with each layer's output.
    ``asides`` are entries of a codebook by the part of a block that it stands behind. ``sequences`` int64 (count, tokens) are text whose
    behaviour is protected; ``kept`` remembers their covariances. A row has at most ``positions`` tokens, any number where it is None.
    """

    module: nn.Module
    tokenizer: Any
    layers: Mapping[str, nn.Module]
    blocks: Mapping[str, nn.Module]
    sequences: torch.Tensor
    longest: int = 32
    kept: Any = None
    positions: int | None = None
    others: Mapping[str, nn.Module] = field(default_factory=dict)
    changes: dict[str, torch.Tensor] = field(default_factory=dict)
    asides: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    _inside: bool = False

    @property
    def writable(self) -> dict[str, nn.Module]:
        """All layers that may be written."""
        return {**self.layers, **self.others}

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, layers give their outputs with the changes, once however often it is entered; nothing is left behind."""
        if self._inside:
            yield
            return
        self._inside = True
        hooks = [layer.register_forward_hook(partial(self._changed, name)) for name, layer in self.writable.items()]
        hooks += [self.module.get_submodule(place).register_forward_hook(partial(self._beside, place)) for place in widths(self.module)]
        asked = {parameter: parameter.requires_grad for parameter in self.module.parameters()}
        was = self.module.training
        self.module.eval().requires_grad_(False)
        try:
            yield
        finally:
            self._inside = False
            for hook in hooks:
                hook.remove()
            for parameter, each in asked.items():
                parameter.requires_grad_(each)
            self.module.train(was)

    def _changed(self, name: str, layer: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        change = self.changes.get(name)
        return None if change is None else output + (args[0].to(change.dtype) @ change.T).to(output.dtype)

    def _beside(self, place: str, part: nn.Module, args: tuple, output: Any) -> Any:
        if place not in self.asides:
            return None
        stream = output[0] if isinstance(output, tuple) else output
        stream = stream + Codebook().added(State(self.asides[place]), stream.float()).to(stream.dtype)
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    def add(self, changes: Mapping[str, torch.Tensor]) -> None:
        """Let changes count beside those that count already."""
        for name, change in changes.items():
            self.changes[name] = self.changes[name] + change if name in self.changes else change

    def logits(self, rows: Rows) -> torch.Tensor:
        """What the model gives for rows that run at once. Raises ``DataError`` for rows that are longer than it takes."""
        if self.positions is not None and (size := rows.input_ids.shape[1]) > self.positions:
            raise DataError(
                f"facts: a prompt with its target must have at most the {self.positions} tokens that the model has positions for, one has {size}. "
                "Shorten it."
            )
        found: torch.Tensor = self.module(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits
        return found.float()

    def seen(
        self,
        rows: Rows,
        names: Sequence[str],
        places: Callable[[Rows], torch.Tensor],
        objective: Callable[[torch.Tensor, Rows], torch.Tensor],
    ) -> tuple[dict[str, Seen], torch.Tensor]:
        """Keys and gradients of layers at ``places(rows)``, row by row, and the loss (rows,) that ``objective(logits, rows)`` gives of each row.

        Raises ``ModelError`` where the loss does not reach a layer, or is no number.
        """
        found: dict[str, list[Seen]] = {name: [] for name in names}
        losses = []
        with torch.enable_grad():
            for part in parts(rows):
                met: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
                hooks = [self.writable[name].register_forward_hook(partial(noted, met, name)) for name in names]
                try:
                    loss = objective(self.logits(part), part)
                finally:
                    for hook in hooks:
                        hook.remove()
                if missing := [name for name in names if name not in met]:
                    raise ModelError(f"{missing[0]}: must be used by the model where facts are learnt, is not.")
                if not bool(torch.isfinite(loss).all()):
                    raise ModelError("edit: the loss of a fact must be a number, is not. Change less at a time, or protect more.")
                asked = torch.autograd.grad(loss.sum(), [met[name][1] for name in names])
                chosen = places(part)
                for name, gradient in zip(names, asked):
                    found[name].append(Seen(met[name][0][chosen].float(), gradient[chosen].float()))
                losses.append(loss.detach())
        return {name: Seen(*_joined(some)) for name, some in found.items()}, torch.cat(losses)

    def covariance(self, name: str) -> torch.Tensor:
        """The mean of ``x xᵀ`` (columns, columns) over the inputs of a layer on the protected text, of the model as it was opened."""
        return self.covariances([name])[name]

    def covariances(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The same of several layers, in one pass over what is not known yet."""
        kept = self.kept if self.kept is not None else {}
        if missing := [name for name in names if name not in kept]:
            before, self.changes = self.changes, {}
            totals: dict[str, torch.Tensor] = {}
            hooks = [self.writable[name].register_forward_hook(partial(_summed, totals, name)) for name in missing]
            try:
                with torch.no_grad():
                    for some in self.sequences.split(TOGETHER // 4):
                        self.module(input_ids=some, use_cache=False)
            finally:
                self.changes = before
                for hook in hooks:
                    hook.remove()
            for name in missing:
                kept[name] = mirror(totals[name]) / self.sequences.numel()
        self.kept = kept
        return {name: kept[name] for name in names}


def felt(taught: Taught, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The mean of ``g gᵀ`` (rows, rows) over gradients of layers' outputs on the protected text, of the model as it was opened.

    Labels are drawn from what the model says, so it is the outputs' Fisher information: how far a change of an output moves what is said.
    """
    kept = taught.kept if taught.kept is not None else {}
    if missing := [name for name in names if f"{name} felt" not in kept]:
        totals, count = dict[str, torch.Tensor](), 0
        chance = torch.Generator().manual_seed(0)
        before, taught.changes = taught.changes, {}
        try:
            for some in taught.sequences[:FELT].split(TOGETHER // 8):
                met: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
                hooks = [taught.writable[name].register_forward_hook(partial(noted, met, name)) for name in missing]
                try:
                    with torch.enable_grad():
                        logits = taught.module(input_ids=some, use_cache=False).logits.float().flatten(0, 1)
                        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=chance)[:, 0]
                        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                        found = torch.autograd.grad(loss, [met[name][1] for name in missing])
                finally:
                    for hook in hooks:
                        hook.remove()
                for name, each in zip(missing, found):
                    flat = each.flatten(0, -2).float()
                    add_gram(totals.setdefault(name, torch.zeros(flat.shape[1], flat.shape[1])), flat)
                count += some.numel()
        finally:
            taught.changes = before
        for name in missing:
            kept[f"{name} felt"] = mirror(totals[name]) / count
    taught.kept = kept
    return {name: kept[f"{name} felt"] for name in names}


def parts(rows: Rows) -> Iterator[Rows]:
    """Rows that run at once, one after the other."""
    for start in range(0, len(rows), TOGETHER):
        yield rows.between(start, start + TOGETHER)


def answer_loss(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Mean cross entropy (rows,) of each row's target."""
    each = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), rows.labels[:, 1:], ignore_index=IGNORED, reduction="none")
    return each.sum(1) / (rows.labels[:, 1:] != IGNORED).sum(1).clamp(min=1)


def noted(met: dict[str, tuple[torch.Tensor, torch.Tensor]], name: str, layer: nn.Module, args: tuple, output: torch.Tensor) -> Any:
    """Keep what goes in and what comes out, from which gradients are asked; a layer that is called twice counts at its last call."""
    if not output.requires_grad:
        output = output.detach().requires_grad_(True)
    met[name] = (args[0].detach(), output)
    return output


def _summed(totals: dict[str, torch.Tensor], name: str, layer: nn.Module, args: tuple, output: torch.Tensor) -> None:
    inputs = args[0].reshape(-1, args[0].shape[-1]).float()
    add_gram(totals.setdefault(name, torch.zeros(inputs.shape[1], inputs.shape[1])), inputs)


def _joined(some: Sequence[Seen]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([one.keys for one in some]), torch.cat([one.gradients for one in some])
