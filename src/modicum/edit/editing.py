"""Facts in, a delta out, with what it is worth on the facts, on other wordings, on neighbours and on ordinary text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modicum.core.arguments import checked
from modicum.core.errors import DataError, SettingError
from modicum.core.output import require_free, write_receipt, writing
from modicum.core.progress import Quiet
from modicum.core.recipe import recipe
from modicum.data.splits import from_text
from modicum.delta import Delta
from modicum.edit.editor import Editor
from modicum.edit.facts import Fact, distinct, read_facts
from modicum.edit.judged import each, judged, summary
from modicum.edit.opening import taught as opened
from modicum.edit.teaching import taught
from modicum.edit.written import as_stored, change
from modicum.fit.working import working
from modicum.models.located import locate
from modicum.models.trainable import trainable
from modicum.work.meter import Meter

RECEIPT_FORMAT = "modicum-edited"


@dataclass(frozen=True)
class Edited:
    """What ``edit`` made: the change, its receipt, and the folder where it stands."""

    delta: Delta
    receipt: dict[str, Any]
    out: Path


@checked(but=("facts",))
def edit(
    model: str | Path,
    facts: str | Path | Sequence[Fact],
    out: str | Path,
    *,
    method: str = "ultraedit",
    batch: int = 0,
    longest: int = 32,
    data: str | Path | None = None,
    samples: int = 64,
    tokens: int = 256,
    test_samples: int = 64,
    seed: int = 0,
    overwrite: bool = False,
    progress: Quiet | None = None,
) -> Edited:
    """Teach a causal language model facts, and write the change as a delta that ``apply`` adds and ``revert`` takes back to the bit.

    ``model``: ``demo``, a directory or a Hugging Face id; of a compressed one codes and masks stay as they are, and ``apply`` lays the change over
    them. ``facts``: a file (JSON lines of ``prompt``, ``target`` and perhaps ``subject``, ``paraphrases``, ``neighbours``; zsRE; CounterFact), or
    values of ``modicum.edit.facts.Fact``. ``method``: an editor with its settings. ``batch`` facts at a time, each batch on what the one before
    left, all at once where 0; their order in a batch is of no matter. A target has at most ``longest`` tokens. ``data`` is the text whose
    behaviour is protected (``samples`` sequences of ``tokens``) and on which drift is reported (``test_samples`` others); the shipped texts
    without it.

    The receipt says before and after, with 95 % intervals: *efficacy*, the share of facts whose target greedy decoding gives; *generalisation*,
    the same after paraphrases; *locality*, the share of neighbours after which the first token is what it was; and the perplexity of text.
    Efficacy and all else is of the weights as they are stored, rounded once.

    *Raises*: ``DataError`` for facts that cannot be read or contradict each other, targets that are too long, and a subject that is not in its
    prompt; ``SettingError`` for a method that is no editor, or an ``out`` that must not be written; ``ModelError`` for a model that cannot be opened.
    """
    shown, place = progress or Quiet(), Path(out)
    asked: Editor = recipe("edit", method)
    known = read_facts(facts) if isinstance(facts, str | Path) else distinct(_all_facts(facts))
    read = [locate(model), *(Path(path) for path in (facts, data) if isinstance(path, str | Path))]
    require_free(place, read, overwrite)
    for name, value, least in (("batch", batch, 0), ("longest", longest, 1)):
        if value < least:
            raise SettingError(f"{name}: must be at least {least}, got {value}.")
    meter = Meter(shown)
    with ExitStack() as stack:
        with meter.stage("opening"):
            source, module = stack.enter_context(working(model, tokens))
            splits = from_text(data, source.tokenizer, samples=samples, tokens=tokens, seed=seed, batch=8, test_samples=test_samples)
            protected, test = (
                torch.cat([each["input_ids"] for each in part if isinstance(each, dict)]) for part in (splits.calibration, splits.test)
            )
            pupil = opened(module, source.tokenizer, protected, longest=longest, name=source.hash())
        with meter.stage("judging"):
            before = judged(pupil, known, test) if known else None
        started = time.perf_counter()
        with meter.stage("editing"):
            taught(pupil, known, asked, batch=batch, progress=shown)
        seconds = time.perf_counter() - started
        units = trainable(source.module)
        weights = lambda name: units[name].matrix(source.weights.read(units[name].parameter))
        delta = change(pupil, {unit.parameter: unit.dtype for unit in units.values()}, base=str(model)).stamped(weights)
        receipt: dict[str, Any] = {
            "format": RECEIPT_FORMAT, "version": 1, "model": str(model), "method": str(asked), "facts": len(known), "batch": batch,
            "data": {"source": splits.source, "notes": list(splits.notes), "hashes": splits.hashes}, "seed": seed,
            "bytes": delta.nbytes, "changed": {name: list(size) for name, size in delta.norms(weights).items()}, "seconds": seconds,
        }  # fmt: skip
        if before is not None:
            with meter.stage("judging"), as_stored(pupil, delta, weights):
                after = judged(pupil, known, test)
            receipt |= summary(before, after) | {"each": each(known, before, after)}
        receipt["stages"] = meter.stages
    with writing(place, read, overwrite) as folder:
        delta.save(folder)
        write_receipt(folder, receipt)
    return Edited(delta, receipt, place)


def _all_facts(facts: Any) -> Sequence[Fact]:
    if not isinstance(facts, Sequence) or not all(isinstance(fact, Fact) for fact in facts):
        raise DataError("facts: must be a path, or a list of modicum.edit.facts.Fact, is neither. Write Fact(prompt, target).")
    return facts
