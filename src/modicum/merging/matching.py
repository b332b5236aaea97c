"""Weight matching: the units of one model put in the order in which they are most alike another's."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.export.loaded import loaded
from modicum.merging.sources import Source, Stored
from modicum.models.open import model_class, read_config
from modicum.models.permutable import Member, Numbering, by_tensor, numberings, permuted

Read = Callable[[str], torch.Tensor]
_ROUNDS = 100


def matched(base: Read, other: Read, sets: Sequence[Numbering], seed: int = 0) -> list[torch.Tensor]:
    """For each numbering the order in which ``other`` is nearest to ``base``: (count,) old numbers by new ones.

    Ainsworth, Hayase and Srinivasa (2022, "Git Re-Basin"): one numbering after the other is solved exactly as an assignment, given all others, in an
    order that is drawn again each round, until a round changes none. Each round reads every tensor that moves once or twice.
    """
    orders = [torch.arange(each.count) for each in sets]
    draw = torch.Generator().manual_seed(seed)
    for _ in range(_ROUNDS):
        moved = False
        for place in torch.randperm(len(sets), generator=draw).tolist():
            numbering = sets[place]
            gain = torch.zeros(numbering.count, numbering.count, dtype=torch.float64)
            rest = by_tensor([pair for number, pair in enumerate(zip(sets, orders)) if number != place])
            for member in numbering.members:
                one, two = base(member.name).double(), permuted(other(member.name).double(), rest.get(member.name, ()))
                gain += _by_group(one, member) @ _by_group(two, member).T
            found = torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
            rows = torch.arange(numbering.count)
            if float(gain[rows, found].sum()) > float(gain[rows, orders[place]].sum()) * (1 + 1e-12) + 1e-300:
                orders[place], moved = found, True
        if not moved:
            break
    return orders


def _by_group(value: torch.Tensor, member: Member) -> torch.Tensor:
    """What a tensor has of each group (count, entries)."""
    return value.movedim(member.axis, 0)[member.index.reshape(-1)].reshape(len(member.index), -1)


@dataclass
class Renumbered(Source):
    """A model whose units are in another order: what it computes is the same."""

    of: Source
    orders: Sequence[tuple[Numbering, torch.Tensor]]
    label: str
    _latest: dict[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def _members(self) -> dict[str, list[tuple[Member, torch.Tensor]]]:
        return by_tensor(self.orders)

    @cached_property
    @override
    def digest(self) -> str:  # type: ignore[override]
        words = repr([order.tolist() for _, order in self.orders])
        return hashlib.sha256(f"{self.of.digest} {words}".encode()).hexdigest()

    @override
    def names(self) -> list[str]:
        return self.of.names()

    @override
    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        return self.of.entry(name)

    @override
    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        members = self._members.get(name)
        if members is None:
            return self.of.read(name, start, stop)
        held = self._latest.get(name)
        if held is None:
            held = permuted(whole(self.of, name), members).reshape(-1)
            self._latest = {name: held}
        return held[start:stop]


def whole(source: Source, name: str) -> torch.Tensor:
    """A tensor in its shape."""
    shape = source.entry(name)[1]
    return source.read(name, 0, math.prod(shape)).reshape(shape)


def _stored(numbering: Numbering, names: set[str]) -> Numbering:
    """The same, of tensors that are stored. Raises ``ModelError`` for one that is stored under no name of its own."""
    held = {member.tied for member in numbering.members if member.name in names}
    for member in numbering.members:
        if member.tied not in held:
            raise ModelError(
                f"match: {quoted(member.name)} must be stored under the name that the model has it by, is not. Merge it unmatched."
            )
    return replace(numbering, members=tuple(member for member in numbering.members if member.name in names))


def renumbered(base: Source, others: Sequence[Source], sets: Sequence[Numbering], seed: int = 0) -> list[Source]:
    """Each model with its units in the order in which they are most alike the base's. Raises ``ModelError`` where names or shapes differ."""
    names = set(base.names())
    kept = [_stored(each, names) for each in sets]
    found: list[Source] = []
    for other in others:
        for member in (member for each in kept for member in each.members):
            if other.entry(member.name)[1] != base.entry(member.name)[1]:
                raise ModelError(
                    f"{other.label}: {quoted(member.name)} must have the shape of the base's to be matched. Match models of one architecture."
                )
        orders = matched(functools.partial(whole, base), functools.partial(whole, other), kept, seed)
        found.append(Renumbered(other, tuple(zip(kept, orders)), other.label))
    return found


def of_checkpoint(base: Stored) -> list[Numbering]:
    """What may be renumbered in a checkpoint that Transformers loads. Raises ``ModelError`` for one whose inputs are not known."""
    module = loaded(model_class(read_config(base.directory), base.label), base.directory).float()
    config: Any = module.config
    wanted = getattr(module, "main_input_name", "")
    draw = torch.Generator().manual_seed(0)
    if wanted == "input_ids":
        ids = torch.randint(0, config.get_text_config().vocab_size, (1, 12), generator=draw)
        more = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
        return numberings(module, input_ids=ids, **more)
    if wanted == "pixel_values" and isinstance(size := getattr(config, "image_size", None), int):
        return numberings(module, pixel_values=torch.randn(1, getattr(config, "num_channels", 3), size, size, generator=draw))
    raise ModelError(f"{base.label}: must read text or pictures to be matched, reads {wanted or 'something else'}. Merge it unmatched.")


def of_module(module: Any, example: Any) -> list[Numbering]:
    """What may be renumbered in a module that is called with an example: a tensor, several, or a mapping. Raises ``SettingError``."""
    if not isinstance(module, nn.Module) or isinstance(example, bool):
        raise SettingError("match: of a base in memory must be an example of a module's inputs, and the base that module.")
    if isinstance(example, Mapping):
        return numberings(module, **example)
    return numberings(module, *(example if isinstance(example, tuple | list) else (example,)))


def told(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """What the receipt says of each model that was matched: how many orders were looked for, and how many units stand elsewhere."""
    return [
        {
            "model": source.label, "orders": len(source.orders), "units": sum(len(order) for _, order in source.orders),
            "moved": sum(int((order != torch.arange(len(order))).sum()) for _, order in source.orders),
        }
        for source in sources if isinstance(source, Renumbered)
    ]  # fmt: skip
