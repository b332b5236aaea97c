"""A few numbers trained beside a checkpoint: data in, a delta out, with what it is worth on held-out text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modicum.core.arguments import checked
from modicum.core.files import write_json
from modicum.core.progress import Quiet
from modicum.data.answers import from_answers, holds_answers
from modicum.data.splits import Splits, from_text
from modicum.export.loaded import loaded
from modicum.models.located import locate
from modicum.models.open import model_class, open_model, read_config
from modicum.numerics.interval import interval
from modicum.train.loop import evaluate, single, train
from modicum.train.settings import Loop
from modicum.train.trained import Trained
from modicum.work.meter import Meter
from modicum.work.workdir import WorkDir

KIND, RECEIPT = "modicum-adapting", "receipt.json"
RECEIPT_FORMAT = "modicum-adapted"


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
) -> Adapted:
    """Train ``method`` beside the weights of a causal language model, and write what was learnt as a delta.

    ``model``: ``demo``, a directory or a Hugging Face id. ``data``: text of any kind that ``fit`` reads, of which windows of ``tokens`` are
    learnt, or a table of prompts and answers or conversations (JSON lines, CSV), of which the answers alone are; the shipped texts without
    it. Its rows are divided into training, choosing and reporting as everywhere. ``loop`` says how it is trained.

    The receipt says what was trained, how many numbers and bytes, the losses, memory and time, and the loss per token on the test part
    before and after, with a paired 95 % interval over its sequences. An interrupted training goes on where it was, with the same numbers.

    *Raises*: ``SettingError`` for a method that is not trained, or an ``out`` that must not be written; ``DataError`` for data that cannot
    be read or learnt; ``ModelError`` for a model that cannot be opened, and where the loss is no number.
    """
    settings = loop or Loop()
    directory, place = locate(model), WorkDir(Path(out), KIND, overwrite, tuple(path for path in (Path(data or "."),) if data is not None))
    place.check()
    meter = Meter(progress or Quiet())
    with meter.stage("opening"):
        source = open_model(directory)
        splits = _data(source, data, tokens, samples, test_samples, text_column, settings)
        module = loaded(model_class(read_config(directory), str(model)), directory).eval()
    trained = Trained(module, method, seed=settings.seed, total=settings.steps)
    asked = {"model": str(model), "method": method, "loop": asdict(settings), "data": splits.hashes, "base": source.hash()}
    with place.held():
        folder = place.begin(repr(asked))
        final = folder / "final"
        with meter.stage("judging"):
            before = evaluate(module, single(splits.test))
        started = time.perf_counter()
        with trained as t:
            with meter.stage("training"):
                losses = train(module, t, single(splits.calibration), settings, keep=folder, progress=progress)
            seconds = time.perf_counter() - started
            with meter.stage("judging"):
                after = evaluate(module, single(splits.test))
            delta = t.delta(str(model))
            delta.save(final)
        receipt = {
            "format": RECEIPT_FORMAT, "version": 1, "model": str(model), "method": method, "loop": asdict(settings),
            "data": {"source": splits.source, "notes": list(splits.notes), "hashes": splits.hashes},
            "trained": trained.count, "parameters": source.parameters, "bytes": delta.nbytes, "units": len(trained.places),
            "losses": losses, "test": compared(before, after), "seconds": seconds, "stages": meter.stages,
        }  # fmt: skip
        write_json(final / RECEIPT, receipt)
        place.finish(final)
    return Adapted(place.out, receipt)


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


def _data(source: Any, data: Any, tokens: int, samples: int, test_samples: int, text_column: str | None, settings: Loop) -> Splits:
    if data is not None and holds_answers(Path(data)):
        return from_answers(Path(data), source.tokenizer, tokens=tokens, batch=settings.batch, seed=settings.seed)
    return from_text(
        data, source.tokenizer, samples=samples, tokens=tokens, seed=settings.seed, batch=settings.batch, test_samples=test_samples,
        text_column=text_column,
    )  # fmt: skip
