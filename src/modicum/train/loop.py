"""The loop: updates of what is trained, exactly resumable."""

from __future__ import annotations

import io
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.errors import DataError, ModelError, SettingError, quoted
from modicum.core.parametrization import State
from modicum.core.progress import Quiet
from modicum.data.splits import Batch, some_rows
from modicum.sweep.modes import seeded
from modicum.sweep.ranks import LONE, Ranks
from modicum.sweep.stage import seed_of
from modicum.train.objectives import Objective, next_token
from modicum.train.recomputed import recomputed
from modicum.train.schedule_free import ScheduleFree
from modicum.train.settings import COSINE, FREE, Loop
from modicum.train.trained import Trained

_FILE, _FORMAT = "training.pt", 1


class DivergedError(ModelError):
    """A loss or a gradient that is no number."""


def train(
    module: nn.Module, trained: Trained, rows: Sequence[Batch] | Iterable[Batch], loop: Loop, *, objective: Objective = next_token,
    keep: Path | None = None, progress: Quiet | None = None, training: bool = True, ranks: Ranks = LONE,
) -> list[float]:  # fmt: skip
    """Update what is trained, and give the loss per token of every update.

    ``rows`` are sequences, a batch of one row each; an update takes ``loop.batch`` of them in an order drawn anew for every pass over all. What can
    only be iterated over, a stream, gives batches of any number of rows, which are taken as they come, and from its beginning again where it ends.
    The loss is the sum over an update's tokens divided by their number, whatever their padding and however many are computed ``together``.
    With ``keep``, a folder, a training that was killed goes on with the same losses to the last bit, on the same number of threads. Where not
    ``training``, the module computes as it answers: nothing is dropped by chance, and no statistics of batches move. Several ``ranks`` compute parts
    of each update and sum what they found, so that all hold the same numbers; the first of them keeps.

    Raises ``DataError`` where there is nothing to learn from, ``DivergedError`` at a loss that is no number: what was kept before it stays, and
    ``kept`` takes it up again.
    """
    if isinstance(rows, Sequence) and not rows:
        raise DataError("data: must hold a sequence to train on at least, holds none. Give more text.")
    shown, optimizer = progress or Quiet(), _optimizer(trained, loop)
    losses = _resumed(module, trained, optimizer, ranks.first("kept", partial(_body, keep)), loop)
    taken = partial(_drawn, rows, loop) if isinstance(rows, Sequence) else _streamed(rows, loop, len(losses))
    shown.start("training", loop.steps - len(losses))
    module.train(training)
    try:
        with blocks(module, trained, loop):
            for step in range(len(losses), loop.steps):
                started = time.perf_counter()
                with seeded(seed_of(loop.seed, f"update {step}")):
                    loss, tokens = _update(module, trained, taken(step), loop, objective, optimizer, step, ranks)
                losses.append(loss)
                shown.step()
                shown.tell(f"loss {loss:.4f}, {tokens / (time.perf_counter() - started):,.0f} tokens/s")
                if keep is not None and ranks.leads and ((step + 1) % loop.every == 0 or step + 1 == loop.steps):
                    _keep(module, trained, optimizer, keep, loop, losses)
    finally:
        module.eval()
    _settled(optimizer)
    return losses


def kept(trained: Trained, keep: Path, loop: Loop) -> list[float]:
    """Put what was kept of a training back into what is trained; its losses, none where nothing was kept."""
    optimizer = _optimizer(trained, loop)
    losses = _resumed(trained.module, trained, optimizer, _body(keep), loop)
    _settled(optimizer)
    return losses


def _optimizer(trained: Trained, loop: Loop) -> torch.optim.Optimizer:
    """AdamW, with each method's own rate beside what it trains. Raises ``SettingError`` where an average would be of what moves its places."""
    groups = [{"params": parameters, "own": rate} for rate, parameters in trained.by_rate().items()]
    if loop.schedule != FREE:
        return torch.optim.AdamW(groups, weight_decay=loop.decay)
    if (moving := trained.moving) is not None:
        raise SettingError(f"schedule: must be {COSINE} for {moving}, which changes what is trained on the way, is {FREE}.")
    return ScheduleFree(groups, weight_decay=loop.decay)


def _settled(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, ScheduleFree):
        optimizer.settle()


def blocks(module: nn.Module, trained: Trained, loop: Loop) -> AbstractContextManager[None]:
    """Inside, blocks are computed twice where that is asked for. Raises ``SettingError`` where something is computed beside them."""
    if loop.recompute and trained.asides:
        raise SettingError(f"recompute: must be off for {trained.asides[0].method}, which is computed beside the blocks, is on.")
    return recomputed(module) if loop.recompute else nullcontext()


def evaluate(module: nn.Module, rows: Sequence[Batch], objective: Objective = next_token, ranks: Ranks = LONE) -> list[tuple[float, int]]:
    """The loss of every sequence, summed over its tokens, and their number; ``ranks`` share the sequences."""
    mine: list[tuple[float, int]] = []
    with torch.no_grad():
        for row in rows[ranks.rank :: ranks.count]:
            loss, count = objective(module, row)
            mine.append((float(loss.sum()), count))
    shares = ranks.gather("judged", mine)
    return [shares[place % ranks.count][place // ranks.count] for place in range(len(rows))]


def _update(
    module: nn.Module, trained: Trained, rows: Sequence[Batch], loop: Loop, objective: Objective, optimizer: Any, step: int, ranks: Ranks
) -> tuple[float, int]:
    """The mean loss, and how many tokens it is of."""
    for group in optimizer.param_groups:
        group["lr"] = loop.at(step, group["own"])
    optimizer.zero_grad()
    parts = joined(rows, loop.together or max(1, loop.batch // ranks.count))[ranks.rank :: ranks.count]
    if trained.estimator is None or trained.watched:
        total, tokens = _summed(module, parts, objective, ranks, backward=True)
        trained.meet(ranks)
        for parameter in trained.parameters():
            if parameter.grad is not None:
                parameter.grad /= tokens
    else:
        total, tokens = _estimated(module, trained, parts, objective, seed_of(loop.seed, f"update {step}"), ranks)
    if (penalty := trained.penalty()) is not None:
        penalty.backward()
        total += float(penalty.detach()) * tokens
    norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), loop.clip or math.inf)
    if not (math.isfinite(total) and bool(torch.isfinite(norm))):
        what = "loss" if not math.isfinite(total) else "gradient"
        found = total if what == "loss" else float(norm)
        advice = "Lower --rate." if step else "Check the data and the weights that it begins with."
        raise DivergedError(f"training: the {what} must be a number, is {found} at update {step + 1}. {advice}")
    optimizer.step()
    trained.revise(optimizer)
    return total / tokens, tokens


def _summed(module: nn.Module, parts: Sequence[Batch], objective: Objective, ranks: Ranks, *, backward: bool) -> tuple[float, int]:
    """Loss and tokens over parts of an update, of all ranks. Raises ``DataError`` where there is no token."""
    total, tokens = 0.0, 0
    for part in parts:
        losses, count = objective(module, part)
        if backward:
            losses.sum().backward()
        total, tokens = total + float(losses.detach().sum()), tokens + count
    both = torch.tensor([total, tokens], dtype=torch.float64)
    ranks.sum("loss", both)
    total, tokens = float(both[0]), int(both[1])
    if not tokens:
        raise DataError("data: a batch must have a token to learn, has none. Check the labels.")
    return total, tokens


def _estimated(
    module: nn.Module, trained: Trained, parts: Sequence[Batch], objective: Objective, seed: int, ranks: Ranks
) -> tuple[float, int]:
    """The same, with gradients per token by the plan's estimator instead of a backward pass."""
    counted = [0]

    def loss() -> float:
        with torch.no_grad(), seeded(seed):
            total, counted[0] = _summed(module, parts, objective, ranks, backward=False)
        return total / counted[0]

    assert trained.estimator is not None
    moving = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    mean = trained.estimator.estimate(loss, moving, seed)
    return mean * counted[0], counted[0]


def _drawn(rows: Sequence[Batch], loop: Loop, step: int) -> list[Batch]:
    """Sequences of an update; each pass over all has an order of its own."""
    found = []
    for place in range(step * loop.batch, (step + 1) * loop.batch):
        turn, at = divmod(place, len(rows))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed_of(loop.seed, f"pass {turn}")))
        found.append(rows[int(order[at])])
    return found


def _streamed(rows: Iterable[Batch], loop: Loop, done: int) -> Callable[[int], list[Batch]]:
    """What gives the sequences of each next update of a stream, of which those of ``done`` updates are passed over."""

    def endless() -> Iterator[Batch]:
        while True:
            count = 0
            for batch in rows:
                for row in single([batch]):
                    count += 1
                    yield row
            if not count:
                raise DataError(
                    "data: a stream must give a sequence each time that it is begun, gives none. Pass one that can be begun again."
                )

    stream = endless()
    for _ in itertools.islice(stream, done * loop.batch):
        pass
    return lambda step: list(itertools.islice(stream, loop.batch))


def joined(rows: Sequence[Batch], together: int) -> list[Batch]:
    """Rows as batches: those of one length side by side."""
    by_shape: dict[Any, list[Batch]] = {}
    for row in rows:
        by_shape.setdefault(tuple((name, value.shape) for name, value in _items(row)), []).append(row)
    found: list[Batch] = []
    for same in by_shape.values():
        for start in range(0, len(same), together):
            some = same[start : start + together]
            parts = {name: torch.cat([dict(_items(row))[name] for row in some]) for name, _ in _items(some[0])}
            found.append(parts if isinstance(some[0], dict) else tuple(parts.values()))
    return found


def _items(row: Batch) -> list[tuple[Any, torch.Tensor]]:
    return list(row.items()) if isinstance(row, dict) else list(enumerate(row))


def single(batches: Sequence[Batch]) -> list[Batch]:
    """Rows of batches, each alone and without its padding."""
    found = []
    for batch in batches:
        for place in range(len(next(value for _, value in _items(batch)))):
            row = some_rows(batch, place, place + 1)
            if isinstance(row, dict) and "attention_mask" in row:
                length = int(row["attention_mask"].sum())
                row = {name: value[:, :length] if value.ndim > 1 else value for name, value in row.items() if name != "attention_mask"}
            found.append(row)
    return found


# Kept


def _keep(module: nn.Module, trained: Trained, optimizer: torch.optim.Optimizer, folder: Path, loop: Loop, losses: list[float]) -> None:
    states = {name: (dict(place.state.trained), dict(place.state.frozen)) for name, place in trained.places.items()}
    asides = [dict(each.state.trained) for each in trained.asides]
    common = {str(place.method): dict(place.state.common.trained) for place in trained.places.values() if place.state.common is not None}
    body = {
        "format": _FORMAT,
        "loop": str(loop),
        "states": states,
        "common": common,
        "asides": asides,
        "optimizer": optimizer.state_dict(),
        "losses": losses,
        "buffers": dict(module.named_buffers()),
        "shapes": _shapes(trained),
    }
    new = folder / f"{_FILE}.new"
    try:
        torch.save(body, new)
        new.replace(folder / _FILE)
    except (OSError, RuntimeError) as error:  # what writes the file tells a full disk as a RuntimeError
        raise ModelError(f"{new}: cannot be written ({quoted(error)}). Free space; the same command goes on from what was kept.") from None


def _body(folder: Path | None) -> bytes | None:
    """What was kept, as it lies on disk; None where there is nothing that can be read."""
    try:
        return None if folder is None else (folder / _FILE).read_bytes()
    except OSError:
        return None


def _resumed(module: nn.Module, trained: Trained, optimizer: torch.optim.Optimizer, raw: bytes | None, loop: Loop) -> list[float]:
    if raw is None:
        return []
    try:
        body = torch.load(io.BytesIO(raw), weights_only=True)
        if body["format"] != _FORMAT or body["loop"] != str(loop) or body["shapes"] != _shapes(trained):
            return []
        for name, place in trained.places.items():
            learnt, frozen = body["states"][name]
            _filled(place.state, learnt)
            place.state = replace(place.state, frozen=frozen)
            if place.state.common is not None:
                _filled(place.state.common, body["common"][str(place.method)])
        for each, learnt in zip(trained.asides, body["asides"], strict=True):
            _filled(each.state, learnt)
        optimizer.load_state_dict(body["optimizer"])
        for name, buffer in module.named_buffers():
            buffer.copy_(body["buffers"][name])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError):
        return []
    trained.step = replace(trained.step, number=len(body["losses"]))
    trained.wake(optimizer)
    return list(body["losses"])


def _shapes(trained: Trained) -> dict[str, tuple[int, int]]:
    """What weights are made, whatever they are made of: another model's training is none to go on with."""
    return {name: place.unit.shape for name, place in trained.places.items()}


def _filled(state: State, learnt: dict[str, torch.Tensor]) -> None:
    for name, tensor in state.trained.items():
        tensor.data = learnt[name].detach().clone()
