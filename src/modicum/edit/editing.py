"""Facts in, a delta out, with what it is worth on the facts, on other wordings, on neighbours and on ordinary text."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.arguments import checked
from modicum.core.errors import DataError, SettingError
from modicum.core.output import require_free, write_receipt, writing
from modicum.core.progress import Quiet
from modicum.core.recipe import recipe
from modicum.data.splits import from_text
from modicum.delta import Beside, Delta
from modicum.delta.beside import fingerprint
from modicum.edit.editor import Editor, Past, require_layers
from modicum.edit.facts import Fact, distinct, read_facts
from modicum.edit.judged import Judged, each, judged, summary
from modicum.edit.opening import taught as opened
from modicum.edit.rows import encoded
from modicum.edit.taught import Taught
from modicum.fit.working import working
from modicum.forms import Base, Dense, Form, LowRank, Sum
from modicum.models.located import locate
from modicum.models.trainable import trainable
from modicum.work.meter import Meter

RECEIPT_FORMAT = "modicum-edited"
# Of the largest singular value of a change: what is smaller is left out.
_NOTHING = 1e-5


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
            with meter.stage("judging"):
                after = _as_stored(pupil, delta, weights, known, test)
            receipt |= summary(before, after)
            receipt["each"] = each(known, before, after)
        receipt["stages"] = meter.stages
    with writing(place, read, overwrite) as folder:
        delta.save(folder)
        write_receipt(folder, receipt)
    return Edited(delta, receipt, place)


def taught(pupil: Taught, facts: Sequence[Fact], method: str | Editor, *, batch: int = 0, progress: Quiet | None = None) -> Taught:
    """The model after it was taught the facts, ``batch`` at a time; the same object, whose ``changes`` are what it learnt.

    Raises what ``edit`` raises.
    """
    shown = progress or Quiet()
    asked: Editor = recipe("edit", method)
    require_layers(pupil)
    if facts:
        encoded(pupil.tokenizer, facts, pupil.longest)  # refused before any work
    size = batch or max(1, len(facts))
    past = Past()
    shown.start("editing", -(-len(facts) // size))
    with pupil.computing():
        for start in range(0, len(facts), size):
            some = sorted(facts[start : start + size], key=lambda fact: (fact.prompt, fact.target))
            past = asked.teach(pupil, some, past)
            shown.step()
    return pupil


def change(pupil: Taught, dtypes: Mapping[str, torch.dtype], *, base: str = "") -> Delta:
    """What a model was taught as a delta: a product where that is smaller, else the whole change."""
    forms: dict[str, Form] = {}
    for name, found in pupil.changes.items():
        if bool(found.any()):
            leaf = Base((found.shape[0], found.shape[1]), dtypes[name], name)
            forms[name] = Sum((leaf, _stored(found)))
    asides = [Beside(place, "codebook", entries, _beneath(pupil, place, dtypes)) for place, entries in pupil.asides.items()]
    return Delta(forms, base=base, asides=tuple(asides))


def _beneath(pupil: Taught, place: str, dtypes: Mapping[str, torch.dtype]) -> str:
    """What stands beneath an aside, as it is stored."""
    stored = copy.deepcopy(pupil.module.get_submodule(place))
    for name, parameter in stored.named_parameters():
        parameter.data = parameter.data.to(dtypes[f"{place}.{name}"])
    return fingerprint(stored)


def _stored(change: torch.Tensor) -> Form:
    left, sizes, right = torch.linalg.svd(change.double(), full_matrices=False)
    kept = int((sizes > _NOTHING * sizes[0]).sum())
    if kept * sum(change.shape) >= change.numel():
        return Dense(change)
    root = sizes[:kept].sqrt()
    return LowRank((left[:, :kept] * root).float().contiguous(), (root[:, None] * right[:kept]).float().contiguous())


def _as_stored(pupil: Taught, delta: Delta, weights: Any, facts: Sequence[Fact], test: torch.Tensor) -> Judged:
    """Judged with the weights that the delta makes, rounded to the dtype that is stored."""
    module, before = pupil.module, {}
    learnt, pupil.changes = pupil.changes, {}
    units = trainable(module)
    try:
        for name in delta.forms:
            parameter: nn.Parameter = module.get_parameter(units[name].parameter)
            before[name] = parameter.data
            parameter.data = units[name].stored(delta.weight(name, weights(name)).float()).reshape(parameter.shape)
        return judged(pupil, facts, test)
    finally:
        for name, value in before.items():
            module.get_parameter(units[name].parameter).data = value
        pupil.changes = learnt


def _all_facts(facts: Any) -> Sequence[Fact]:
    if not isinstance(facts, Sequence) or not all(isinstance(fact, Fact) for fact in facts):
        raise DataError("facts: must be a path, or a list of modicum.edit.facts.Fact, is neither. Write Fact(prompt, target).")
    return facts
