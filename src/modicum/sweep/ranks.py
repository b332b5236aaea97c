"""Several processes at one sweep: each runs its share of the micro-batches, statistics are summed, every unit is treated by one of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from modicum.core.errors import ModelError, ModicumError, SettingError
from modicum.core.unit import Unit

T = TypeVar("T")
# One rank may search for hours while the others wait. One that dies closes its connections, which ends the others at once.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """One process among the ``count`` of a run, by its place; alone unless said otherwise, and then every method is the plain thing.

    All ranks must come to the same calls in the same order; ``what`` names each, and where names differ all raise ``ModelError``, as they do
    where a rank has stopped. A ``ModicumError`` in the work of one is raised by all.
    """

    rank: int = 0
    count: int = 1
    groups: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def leads(self) -> bool:
        """Whether this is the rank that chooses and writes."""
        return self.rank == 0

    @property
    def beside(self) -> int:
        """Ranks that share this machine, and its memory."""
        return min(self.count, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))

    def agreed(self, fingerprint: str) -> str:
        """The fingerprint of the run that all were asked for, with the own share of it.

        Raises ``SettingError`` where they were asked for different ones.
        """
        if len(set(self.gather("request", fingerprint))) > 1:
            raise SettingError(
                "ranks: must all be given the same settings, model and data, were not. Run the same command on all machines."
            )
        return self.stamped(fingerprint)

    def stamped(self, fingerprint: str) -> str:
        """The fingerprint with the own share of the run."""
        return fingerprint if self.count == 1 else f"{fingerprint} {self.rank} of {self.count}"

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every ``count``-th of the items, from the own place on. Raises ``SettingError`` where there are fewer items than ranks."""
        if len(items) < self.count:
            raise SettingError(
                f"ranks: must be at most {len(items)}, the number of calibration batches, are {self.count}. Pass a smaller --micro-batch, "
                "more --samples, or start fewer."
            )
        return items[self.rank :: self.count] if self.count > 1 else items

    def sum(self, what: str, *tensors: torch.Tensor) -> None:
        """Sum tensors over all ranks, in place; shapes are the same everywhere."""
        if self.count > 1:
            self._meet(what, [tuple(tensor.shape) for tensor in tensors])
            with _reached():
                for tensor in tensors:
                    self.groups[tensor.device.type].allreduce([tensor]).wait()

    def union(self, what: str, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors by name, each summed over the ranks that have it, in the order of the first that does."""
        if self.count == 1:
            return dict(found)
        outlines = self.gather(what, {name: (tuple(value.shape), value.dtype, value.device.type) for name, value in found.items()})
        whole = {name: outline for outlines_of_rank in outlines for name, outline in outlines_of_rank.items()}
        summed = {}
        for name, (shape, dtype, device) in whole.items():
            summed[name] = found[name] if name in found else torch.zeros(shape, dtype=dtype, device=device)
            self.sum(name, summed[name])
        return summed

    def gather(self, what: str, value: T) -> list[T]:
        """Every rank's value, by rank."""
        if self.count == 1:
            return [value]
        self._meet(what)
        mine, group = _packed(value), self.groups["cpu"]
        with _reached():
            sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.count)]
            group.allgather([sizes], [torch.tensor([len(mine)])]).wait()
            found = [torch.empty(int(max(sizes)), dtype=torch.uint8) for _ in sizes]
            group.allgather([found], [torch.nn.functional.pad(mine, (0, len(found[0]) - len(mine)))]).wait()
        return [_unpacked(parcel[: int(size)]) for parcel, size in zip(found, sizes)]

    def first(self, what: str, work: Callable[[], T]) -> T:
        """What ``work`` gives on the first rank, which alone carries it out, on all."""
        if self.count == 1:
            return work()
        outcome = _outcome(work) if self.leads else None
        self._meet(what)
        parcel, group = _packed(outcome), self.groups["cpu"]
        with _reached():
            size = torch.tensor([len(parcel)])
            group.broadcast(size, 0).wait()
            parcel = parcel if self.leads else torch.empty(int(size), dtype=torch.uint8)
            group.broadcast(parcel, 0).wait()
        return _result(outcome if self.leads else _unpacked(parcel))

    def deal(self, what: str, tasks: Mapping[str, float], make: Callable[[str], T]) -> Iterator[tuple[str, T]]:
        """What ``make`` gives for each task (name → work, in any unit), carried out by one rank and told to all, in the tasks' order."""
        if self.count == 1:
            yield from ((name, make(name)) for name in tasks)
            return
        owners = dealt(tasks, self.count)
        made = {name: _outcome(lambda name=name: make(name)) for name in tasks if owners[name] == self.rank}  # type: ignore[misc]
        found = self.gather(what, made)
        yield from ((name, _result(found[owners[name]][name])) for name in tasks)

    def _meet(self, what: str, shapes: Sequence[tuple[int, ...]] = ()) -> None:
        """Raise ``ModelError`` where ranks stand at different calls."""
        name = int.from_bytes(hashlib.sha256(f"{what} {shapes}".encode()).digest()[:7], "little")
        ends = torch.tensor([name, -name])
        with _reached():
            self.groups["cpu"].allreduce(ends, distributed.ReduceOp.MIN).wait()
        if ends[0] != -ends[1]:
            raise ModelError(
                f"{what}: must be reached by all ranks at the same time, is not: what the model calls depends on its batch. Start one process."
            )


LONE = Ranks()


def dealt(tasks: Mapping[str, float], count: int) -> dict[str, int]:
    """A rank for every task: the longest first, each to the rank that has least to do."""
    loads, owners = [0.0] * count, {}
    for name in sorted(tasks, key=lambda name: (-tasks[name], name)):
        owners[name] = min(range(count), key=loads.__getitem__)
        loads[owners[name]] += tasks[name]
    return owners


def operations(unit: Unit) -> float:
    """What treating a unit costs beside others, as solving it does."""
    return float(unit.shape[0]) * unit.shape[1] ** 2


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that ``torchrun`` started, connected meanwhile; otherwise a lone one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield LONE
        return
    with _reached():
        store, rank, count = next(rendezvous("env://", timeout=_PATIENCE))
    with connected(store, rank, count) as ranks:
        yield ranks


@contextlib.contextmanager
def connected(store: distributed.Store, rank: int, count: int) -> Iterator[Ranks]:
    """Ranks that meet in ``store``: NCCL carries tensors that lie on GPUs, gloo all else.

    Torch's default group stays as it is: libraries that find one (the loaders that verify the files) take it that all ranks load with them.
    """
    groups: dict[str, Any] = {}
    with _reached():
        groups["cpu"] = distributed.ProcessGroupGloo(distributed.PrefixStore("modicum-cpu", store), rank, count, _PATIENCE)
        local = int(os.environ.get("LOCAL_RANK", rank))
        if distributed.is_nccl_available() and local < torch.cuda.device_count():
            torch.cuda.set_device(local)
            options = distributed.ProcessGroupNCCL.Options()
            groups["cuda"] = distributed.ProcessGroupNCCL(distributed.PrefixStore("modicum-cuda", store), rank, count, options)
    try:
        yield Ranks(rank, count, groups)
    finally:
        groups.clear()  # closes the connections, whoever still holds the ranks


def _packed(value: Any) -> torch.Tensor:
    """Bytes (length,) that ``_unpacked`` makes the value of."""
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _unpacked(parcel: torch.Tensor) -> Any:
    return pickle.loads(parcel.numpy().tobytes())


def _outcome(work: Callable[[], T]) -> T | ModicumError:
    """What work gives, or what it raises through the caller's fault; any other error ends this rank, and thereby all."""
    try:
        return work()
    except ModicumError as error:
        return error


def _result(outcome: Any) -> Any:
    if isinstance(outcome, ModicumError):
        raise outcome
    return outcome


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ModelError("ranks: must all go on, another has stopped or cannot be reached. See what it said.") from error
