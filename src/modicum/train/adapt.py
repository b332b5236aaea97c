"""A few numbers trained beside a checkpoint: data in, a delta out, with what it is worth on held-out text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modicum.core.arguments import checked
from modicum.core.budget import Budget
from modicum.core.errors import BudgetError, DataError, ModelError, SettingError
from modicum.core.option import Option
from modicum.core.output import write_receipt
from modicum.core.progress import Quiet
from modicum.data.answers import from_answers, holds_answers
from modicum.data.forward import require_tokens
from modicum.data.labelled import from_classes, holds_classes
from modicum.data.preferences import from_preferences, holds_preferences
from modicum.data.splits import Batch, Splits, from_text
from modicum.export.loaded import loaded
from modicum.models.located import locate
from modicum.models.open import model_class, open_model, read_config
from modicum.numerics.interval import interval
from modicum.sweep.ranks import LONE, Ranks
from modicum.train import auto
from modicum.train.bounded import fitting, limits, require_ranks, require_within
from modicum.train.finding import planned
from modicum.train.loop import evaluate, single, train
from modicum.train.objectives import CHOSEN, Objective, classes, next_token, preference, referred
from modicum.train.settings import Loop
from modicum.train.trained import Trained
from modicum.work.meter import Meter
from modicum.work.workdir import WorkDir, beside

KIND = "modicum-adapting"
RECEIPT_FORMAT = "modicum-adapted"
# The method that chooses methods, and sequences that its gradients are taken from.
AUTO, _SWEPT = "auto", 128


@dataclass(frozen=True)
class Adapted:
    """What ``adapt`` wrote: the folder of the delta, and its receipt."""

    out: Path
    receipt: dict[str, Any]


@checked()
def adapt(
    model: str | Path,
    out: str | Path,
    *,
    method: str = "lora rank=8",
    data: str | Path | None = None,
    tokens: int = 256,
    samples: int = 512,
    test_samples: int = 64,
    text_column: str | None = None,
    overwrite: bool = False,
    progress: Quiet | None = None,
    loop: Loop | None = None,
    size: str | int | None = None,
    params: str | float | None = None,
    memory: str | int | None = None,
    against: str | None = None,
    ranks: Ranks = LONE,
) -> Adapted:
    """Train ``method`` beside the weights of a causal language model or a classifier of sequences, and write what was learnt as a delta.

    ``model``: ``demo``, a directory or a Hugging Face id. ``data``: text of any kind that ``fit`` reads, of which windows of ``tokens`` are
    learnt; a table (JSON lines, CSV) of prompts and answers or conversations, of which the answers alone are; one of prompts with a
    ``chosen`` and a ``rejected`` answer, of which the first is preferred (DPO); for a classifier one of texts with a ``label``; the shipped texts
    without it. Its rows are divided into training,
    choosing and reporting as everywhere. ``loop`` says how it is trained.

    What is added is bounded by ``size`` (bytes of the delta's files, such as ``"200kB"``), ``params`` (trained numbers as a share of the model's,
    such as ``"1%"``) and ``memory`` (bytes of this process while it trains, such as ``"4GB"``). ``method="auto"`` divides ``size`` or ``params``
    over the weights by what each choice would gain, told by one gradient sweep (``train/auto.py``).

    ``against`` is trained too, in the same updates on the same data, such as ``"full"``; nothing of it is written but what it reaches.

    The receipt says what was trained, how many numbers and bytes, the losses, memory and time, and the loss per token on the test part
    before and after, with a paired 95 % interval over its sequences. An interrupted training goes on where it was, with the same numbers.
    ``ranks``: the processes that call this together, as ``torchrun`` or ``accelerate launch`` starts them; each computes a part of every update, and
    the first writes (``modicum.sweep.ranks.joined``).

    *Raises*: ``SettingError`` for a method that is not trained, or an ``out`` that must not be written; ``DataError`` for data that cannot
    be read or learnt; ``BudgetError`` for a budget that cannot hold, with the smallest that can; ``ModelError`` for a model that cannot be opened,
    and where the loss is no number.
    """
    settings, budget = loop or Loop(), Budget.of(size=size, params=params, memory=memory)
    if method == AUTO and (budget is None or (budget.size is None and budget.params is None)):
        raise SettingError("adapt: method=auto must be told how much may be added. Give --params 1% or --size 200kB.")
    if ranks.count > settings.batch:
        raise SettingError(
            f"ranks: must be at most {settings.batch}, the sequences of an update, are {ranks.count}. Pass a larger --batch."
        )
    inputs = tuple(path for path in (Path(data or "."),) if data is not None)
    directory, place = locate(model), WorkDir(beside(Path(out), ranks.rank), KIND, overwrite, inputs)
    ranks.first("out", place.check)
    meter = Meter(progress or Quiet())
    with meter.stage("opening"):
        source = open_model(directory)
        splits = _data(source, data, tokens, samples, test_samples, text_column, settings)
        module = loaded(model_class(read_config(directory), str(model)), directory).eval()
        learnt, held = single(splits.calibration), single(splits.test)
        require_tokens(module, [*learnt, *held])
        objective, per = _objective(splits)
        if per == "pair":
            learnt, held = referred(module, learnt), referred(module, held)
    plan, gradients, most = _planned(module, method, learnt, objective, budget, source.parameters, settings, meter)
    trained = Trained(module, plan, seed=settings.seed, total=settings.steps, gradients=gradients)
    if method != AUTO:
        require_ranks(trained)
    require_within(trained, most)
    if against is not None:
        planned(module, against)  # what cannot be is told before anything is trained
    if budget is not None and budget.memory is not None:
        with trained, meter.stage("trying"):
            settings = fitting(module, trained, learnt, settings, budget.memory, objective)
    asked = {
        "model": str(model), "method": method, "loop": asdict(settings), "data": splits.hashes, "base": source.hash(), "budget": str(budget),
        "against": against,
    }  # fmt: skip
    with place.held():
        folder = place.begin(ranks.agreed(repr(asked)))
        final = folder / "final"
        with meter.stage("judging"):
            before = evaluate(module, held, objective, ranks)
        started = time.perf_counter()
        with trained as t:
            with meter.stage("training"):
                losses = train(module, t, learnt, settings, objective=objective, keep=folder, progress=progress, ranks=ranks)
            seconds = time.perf_counter() - started
            with meter.stage("judging"):
                after = evaluate(module, held, objective, ranks)
            delta = t.delta(str(model))
        other = None if against is None else _against(module, against, learnt, held, settings, objective, after, folder, meter, ranks)

        def written() -> dict[str, Any]:
            delta.save(final)
            if budget is not None and budget.size is not None and (size := _bytes(final)) > budget.size:
                raise BudgetError(f"size: must be at least {size:,} bytes for what was learnt, is {budget.size:,}. Allow more.")
            receipt = {
                "format": RECEIPT_FORMAT, "version": 1, "model": str(model), "method": method, "loop": asdict(settings),
                "budget": None if budget is None else str(budget), "plan": plan if isinstance(plan, dict) else None,
                "data": {"source": splits.source, "notes": list(splits.notes), "hashes": splits.hashes},
                "trained": trained.count, "parameters": source.parameters, "bytes": delta.nbytes, "units": len(trained.places),
                "losses": losses, "per": per, "test": compared(before, after), "seconds": seconds, "stages": meter.stages,
                "memory": meter.stages["training"]["peak_bytes"], "against": other,
            }  # fmt: skip
            write_receipt(final, receipt)
            place.finish(final)
            return receipt

        receipt = ranks.first("written", written)
        if not ranks.leads:
            place.discard()
    return Adapted(Path(out), receipt)


def _planned(
    module: nn.Module,
    method: str,
    rows: Sequence[Batch],
    objective: Objective,
    budget: Budget | None,
    parameters: int,
    loop: Loop,
    meter: Meter,
) -> tuple[str | dict[str, str], dict[str, torch.Tensor] | None, dict[str, float]]:
    """The plan, gradients that it begins with, and what it may spend."""
    most = limits(budget, parameters)
    if method != AUTO and not any(getattr(step, "asks_gradient", False) for step in Option.parse(method, trained=True).steps):
        return method, None, most
    with meter.stage("sweeping"):
        units = auto.planned_units(module)
        swept = auto.sweep(module, rows[:_SWEPT], units, objective, together=loop.together or loop.batch)
        if method != AUTO:
            return method, swept.whole, most
        found = auto.table(module, units, swept, loop.seed)
    return auto.chosen(found, most), swept.whole, most


def _against(
    module: nn.Module, method: str, rows: Sequence[Batch], held: Sequence[Batch], loop: Loop, objective: Objective,
    mine: Sequence[tuple[float, int]], folder: Path, meter: Meter, ranks: Ranks,
) -> dict[str, Any]:  # fmt: skip
    """What another method reaches in the same training, and what was learnt beside it: its loss before, mine after."""
    keep = folder / "against"
    keep.mkdir(exist_ok=True)
    with Trained(module, method, seed=loop.seed, total=loop.steps) as t, meter.stage("against"):
        losses = train(module, t, rows, loop, objective=objective, keep=keep, progress=meter.progress, ranks=ranks)
        theirs = evaluate(module, held, objective, ranks)
        return {"method": method, "trained": t.count, "losses": losses, "test": compared(theirs, mine)}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def compared(before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Loss per token before and after, and their difference with a 95 % interval over sequences, which have weights by their tokens."""
    counts = np.array([count for _, count in before], dtype=float)
    share = counts / counts.mean()
    old, new = (np.array([loss / max(1, count) for loss, count in each]) for each in (before, after))
    mean, low, high = interval(list((new - old) * share))
    return {
        "before": float((old * share).mean()), "after": float((new * share).mean()), "change": mean, "interval": [low, high],
        "sequences": len(counts), "tokens": int(counts.sum()),
    }  # fmt: skip


def _objective(splits: Splits) -> tuple[Objective, str]:
    """What is learnt of data of this kind, and what it is told per."""
    first = splits.calibration[0]
    if isinstance(first, dict) and f"{CHOSEN}_ids" in first:
        return preference(), "pair"
    return (classes, "text") if isinstance(first, dict) and "labels" in first and first["labels"].ndim == 1 else (next_token, "token")


def _data(source: Any, data: Any, tokens: int, samples: int, test_samples: int, text_column: str | None, settings: Loop) -> Splits:
    if not source.is_causal:
        if not type(source.module).__name__.endswith("ForSequenceClassification"):
            raise ModelError(
                f"{source.name}: must be a causal language model, or classify sequences, {type(source.module).__name__} does neither. Train it by "
                "modicum.trained in a loop of your own."
            )
        if data is None or not holds_classes(Path(data)):
            raise DataError(
                f"data: must be a table of texts with a label each for {source.name}, is {data or 'not there'}. Pass --data rows.jsonl."
            )
        return from_classes(Path(data), source.tokenizer, source.config.id2label, tokens=tokens, seed=settings.seed)
    if data is not None and holds_answers(Path(data)):
        return from_answers(Path(data), source.tokenizer, tokens=tokens, batch=settings.batch, seed=settings.seed)
    if data is not None and holds_preferences(Path(data)):
        return from_preferences(Path(data), source.tokenizer, tokens=tokens, seed=settings.seed)
    return from_text(
        data, source.tokenizer, samples=samples, tokens=tokens, seed=settings.seed, batch=settings.batch, test_samples=test_samples,
        text_column=text_column,
    )  # fmt: skip
