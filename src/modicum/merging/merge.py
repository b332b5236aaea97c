"""Several models made into one: inputs opened, tensors streamed, the result verified and put in its place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.arguments import checked
from modicum.core.budget import parse_size
from modicum.core.config import NAME as ASKED
from modicum.core.errors import SettingError
from modicum.core.files import write_json
from modicum.core.grammar import read_merge
from modicum.core.memory import free_memory, own_memory
from modicum.core.method import registry
from modicum.core.output import RECEIPT, write_receipt
from modicum.core.progress import Quiet
from modicum.core.settings import require_seed
from modicum.export.companions import copy_companions
from modicum.merge._family import Merge
from modicum.merging.engine import run
from modicum.merging.inputs import opened, plan_of, unlike, weighed
from modicum.merging.job import Job, ordered, require_memory
from modicum.merging.layered import Layered, config_of, with_layers
from modicum.merging.matching import of_checkpoint, of_module, renumbered, told
from modicum.merging.mixture import Mixture
from modicum.merging.pieces import Files, Memory
from modicum.merging.reading import read_plan
from modicum.merging.search import WAYS, Found, Score, require_whole, search
from modicum.merging.sources import Held, Source, Stored, hashed
from modicum.merging.verify import Judged, by_loss, verified
from modicum.merging.vocabularies import Joined, joined, require_one
from modicum.work.meter import Meter
from modicum.work.workdir import WorkDir, read_from

KIND = "modicum-merging"
RECEIPT_FORMAT = "modicum-merged"
_INDEX = "model.safetensors.index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Model = str | Path | nn.Module | Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Merged:
    """What ``merge`` made: the folder, or of models in memory the ``tensors``; and its receipt, with notes as ``events``."""

    out: Path | None
    receipt: dict[str, Any]
    tensors: Mapping[str, torch.Tensor] | None = None


@checked(but=("base", "models", "statistics", "match"))
def merge(
    base: Model | None = None,
    models: Sequence[Model] = (),
    out: str | Path | None = None,
    *,
    plan: str | Path | None = None,
    method: str = "ties",
    weights: Sequence[float] | None = None,
    statistics: Sequence[str | Path | Mapping[str, torch.Tensor]] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    match: Any = False,
    tokenizer: str | None = None,
    evaluate: str | None = None,
    score: Callable[[Mapping[str, torch.Tensor]], float] | None = None,
    trials: int = 24,
    verify: bool = True,
    data: str | Path | None = None,
    samples: int = 32,
    tokens: int = 256,
    quality: bool = False,
    ram: str | None = None,
    overwrite: bool = False,
    progress: Quiet | None = None,
) -> Merged:
    """Merge ``models`` into ``base`` by ``method``, and write a checkpoint with the base's names, files and dtypes.

    ``base`` and ``models``: directories, ids or ``demo``; a model may be a delta that ``adapt`` or ``delta`` wrote, or an adapter of PEFT, both on
    the base. Modules or mappings of tensors are merged in memory, without ``out``. ``weights``: one for each model, by default what the method
    says. ``statistics``: for methods that are made of them one for each model, tensors by ``name/kind``, such as ``fisher`` (of the tensor's shape)
    or ``gram`` (columns, columns), in memory or as a folder's safetensors. ``dtype``: what is stored, by default the base's. Tensors are read, made
    and written in pieces, in float32 or wider, and rounded once; the result is the same for any number of threads, and where the method says so for
    any order of the models. An interrupted merge goes on with the tensors that are missing.

    ``plan``: a file that says all of it instead, ours or mergekit's: weights by pattern or over the layers, models that learnt from a base of their
    own, slices of layers.

    ``match`` puts the units of each model in the order in which they are most alike the base's before anything is merged: what a permutation hides
    from an average between models that were trained apart. Of modules in memory it is an example of their inputs, of folders true.

    ``tokenizer`` is for models whose vocabularies differ: the ``base``'s, the ``union`` of all, or a model's, by its name. Tokens are told by their
    text; a row that a model lacks is the base's, one that the base lacks the mean of those that have it. Without it models of another vocabulary
    are refused.

    ``evaluate`` chooses the weights on validation data: the ``curve`` of one weight for all, the ``greedy`` soup, or ``evolution``, which moves
    ``weights`` in ``trials``. A merge is as good as its loss on the validation part of ``data`` is low, or as ``score`` says of its tensors. Each
    that is tried is whole in memory, as is the module that it is tried in.

    The result is ``verify``-ed: reloaded by Transformers, every tensor finite, and its perplexity on held-out text (``data``, by default the
    shipped texts; ``samples`` windows of ``tokens``) at most 1.5 times the worst input's, else an event. With ``quality`` the receipt has the
    loss of base, inputs and result with intervals.

    *Raises*: ``ModelError`` naming a tensor that a model lacks, that has another shape or holds NaN; ``SettingError`` for weights of another
    number than the models, a method that merges nothing, an ``out`` that must not be written.
    """
    said = None if plan is None else read_plan(plan)
    if said is not None:
        if base is not None or models:
            raise SettingError("plan: says what is merged; leave out base and models, or the plan.")
        for name, given_too in (("method", method != "ties"), ("weights", weights is not None), ("seed", seed != 0)):
            if given_too:
                raise SettingError(f"{name}: is said by the plan. Leave it out, or write it there.")
        base, method, dtype, seed = said.base, said.method, dtype or said.dtype, said.seed
    require_seed(seed)
    chosen = method_of(method)
    if weights is not None and len(weights) != len(models):
        raise SettingError(f"weights: must be one for each of {len(models)} models, are {len(weights)}.")
    if dtype is not None and dtype not in DTYPES:
        raise SettingError(f"dtype: must be {', '.join(DTYPES)}, is {dtype!r}.")
    if tokens < 2:
        raise SettingError(f"tokens: must be at least 2, since the first is not predicted, got {tokens}.")
    if evaluate is None and chosen.evaluated:
        raise SettingError(f"{chosen}: greedy takes validation data. Pass --evaluate.")
    if evaluate is not None and evaluate not in WAYS:
        raise SettingError(f"evaluate: must be {', '.join(WAYS)}, is {evaluate!r}.")
    if not isinstance(base, str | Path):
        alike = tuple(float(weight) for weight in weights) if weights is not None else (chosen.weight,) * len(models)
        chosen.check(alike)
        if tokenizer is not None:
            raise SettingError("tokenizer: is of checkpoints in folders, tensors in memory have none. Leave it out.")
        beside = _beside(chosen, statistics, len(models))
        return _in_memory(chosen, base, models, alike, beside, dtype, seed, match, evaluate, score, trials)
    if out is None:
        raise SettingError("out: must name the folder to write, is not given.")
    said = said or plan_of(base, models, method, weights, dtype, seed)
    place = WorkDir(Path(out), KIND, overwrite, read_from(*said.named))
    place.check()
    meter = Meter(progress or Quiet())
    with meter.stage("opening"):
        given = opened(said, chosen)
        by_name = weighed(given, given.weights, chosen)
        beside = _beside(chosen, statistics, len(given.models))
        words = None
        if (kind := tokenizer or said.tokenizer) is not None:
            words = joined(kind, given.base, given.models)
        elif not said.slices:
            require_one(given.base, given.models)
    told_apart = unlike(given)
    with meter.stage("hashing"):
        inputs = [{"model": each.label, "sha256": each.digest} for each in (given.base, *given.models)]
    if words is not None:
        given = replace(given, base=words.base, models=words.models, given=())
    if match:
        with meter.stage("matching"):
            if said.slices or said.experts or match is not True:
                raise SettingError("match: must be true for folders, and neither layers of slices nor experts can be matched.")
            given = replace(given, models=tuple(renumbered(given.base, given.models, of_checkpoint(given.checkpoints[0]), seed)))
    searched = None
    shares: tuple[Any, ...] = given.weights
    whose = given.checkpoints[0] if words is None else next(each for each in given.checkpoints if each.directory == words.folder)
    judged_by = Judged(whose, given.given, data, samples, tokens, seed, quality)
    if evaluate is not None:
        with meter.stage("choosing"):
            if words is not None or said.slices or said.experts or not all(isinstance(share, float) for share in shares):
                raise SettingError("evaluate: chooses one weight for each model of one vocabulary; leave out slices and weights by layer.")
            require_whole(given.base, 1 if score else 2, free_memory(None if ram is None else parse_size(ram, "ram")), own_memory())
            judge = score or by_loss(judged_by)
            searched = search(evaluate, _score(chosen, given.base, given.models, beside, seed, judge), shares, trials, seed)
            shares = searched.weights
    sources, shares, beside = ordered(chosen, given.models, shares, beside)
    by_name = weighed(given, shares, chosen)
    job = Job(chosen, given.base, sources, by_name, seed, DTYPES.get(dtype or ""), beside)
    job = require_memory(job, free_memory(None if ram is None else parse_size(ram, "ram")), own_memory())
    asked = {
        "method": str(chosen),
        "weights": shares,
        "dtype": dtype,
        "seed": seed,
        "inputs": [each["sha256"] for each in inputs],
        "match": bool(match),
    }
    asked["statistics"] = [each.digest for each in beside]
    with place.held():
        final = place.begin(repr(asked)) / "final"
        rows = _written(job, given.checkpoints[0], final, meter, words)
        with meter.stage("hashing"):
            digest = hashed(sorted(final.glob("*.safetensors")))
        events: list[str] = [
            *said.notes,
            *told_apart,
            *([] if words is None else [f"vocabularies joined ({kind}): models of another one were not judged"]),
        ]
        judged: dict[str, Any] = {}
        if verify:
            with meter.stage("verifying"):
                judged = verified(final, judged_by, events)
        receipt = {
            "format": RECEIPT_FORMAT, "version": 1, "method": str(chosen), "base": inputs[0],
            "models": [{"model": each.label, "sha256": each.digest, "weight": share} for each, share in zip(sources, shares)],
            **({} if searched is None else {"evaluated": _told(evaluate, searched)}),
            **({"mixture": job.base.told()} if isinstance(job.base, Mixture) else {}),
            **({"matched": matched} if (matched := told(sources)) else {}),
            "seed": seed, "sha256": digest, **judged, "events": events, "layers": _layers(rows), "tensors": rows, "stages": meter.stages,
        }  # fmt: skip
        write_receipt(final, receipt)
        place.finish(final)
    return Merged(place.out, receipt)


def method_of(text: str) -> Merge:
    """The merge that an option's text names. Raises ``SettingError``."""
    found: Merge = read_merge(text, registry())
    return found


def _beside(method: Merge, given: Sequence[Any] | None, models: int) -> tuple[Source, ...]:
    """Statistics of each model's data. Raises ``SettingError`` where the method wants some and there are none, or of another number."""
    if not method.statistics:
        return ()
    if given is None or len(given) != models:
        raise SettingError(
            f"{method}: is made of statistics ({', '.join(method.statistics)}) of each model's data. Give one for each of {models} models."
        )
    return tuple(Stored(Path(each), str(each)) if isinstance(each, str | Path) else _held(each, "statistics") for each in given)


def _in_memory(
    method: Merge, base: Any, models: Sequence[Model], shares: tuple[float, ...], beside: tuple[Source, ...], dtype: str | None, seed: int,
    match: Any, evaluate: str | None, score: Callable[[Mapping[str, torch.Tensor]], float] | None, trials: int,
) -> Merged:  # fmt: skip
    held = [_held(each, f"model {place}" if place else "the base") for place, each in enumerate((base, *models))]
    others: Sequence[Source] = held[1:]
    if match is not False:
        others = renumbered(held[0], others, of_module(base, match), seed)
    searched = None
    if evaluate is not None:
        if score is None:
            raise SettingError("score: must say how good tensors in memory are, is not given.")
        searched = search(evaluate, _score(method, held[0], others, beside, seed, score), shares, trials, seed)
        shares = searched.weights
    sources, shares, beside = ordered(method, others, shares, beside)
    job = Job(method, held[0], sources, lambda name: shares, seed, DTYPES.get(dtype or ""), beside)
    sink = Memory({name: (job.stored(name), job.base.entry(name)[1]) for name in job.base.names()})
    rows = run(job, sink)
    receipt = {
        "format": RECEIPT_FORMAT, "version": 1, "method": str(method), "weights": list(shares), "seed": seed, "layers": _layers(rows),
        "tensors": rows, **({} if searched is None else {"evaluated": _told(evaluate, searched)}),
        **({"matched": matched} if (matched := told(others)) else {}),
    }  # fmt: skip
    return Merged(None, receipt, sink.tensors)


def _score(
    method: Merge, base: Source, others: Sequence[Source], beside: tuple[Source, ...], seed: int,
    judge: Callable[[Mapping[str, torch.Tensor]], float],
) -> Score:  # fmt: skip
    """How good the merge by some weights is, one model in memory at a time."""

    def score(weights: Sequence[float]) -> float:
        sources, shares, statistics = ordered(method, others, tuple(weights), beside)
        job = Job(method, base, sources, lambda name: shares, seed, None, statistics)
        sink = Memory({name: base.entry(name) for name in base.names()})
        run(job, sink)
        return judge(sink.tensors)

    return score


def _told(way: str | None, found: Found) -> dict[str, Any]:
    return {"way": way, "weights": list(found.weights), "score": found.score, "tried": list(found.tried)}


def _held(given: Any, label: str) -> Held:
    if isinstance(given, nn.Module):
        return Held({name: value for name, value in given.state_dict().items() if isinstance(value, torch.Tensor)}, label)
    if isinstance(given, Mapping) and all(isinstance(value, torch.Tensor) for value in given.values()):
        return Held(given, label)
    raise SettingError(f"{label}: must be a module or tensors by name where the base is, is a {type(given).__name__}.")


def _written(job: Job, base: Stored, final: Path, meter: Meter, words: Joined | None) -> list[dict[str, Any]]:
    """The base's files with other values, and what stands beside them; sliced layers are in one file."""
    files: dict[str, dict[str, tuple[torch.dtype, tuple[int, ...]]]] = {}
    for name in job.base.names():
        layout = base if words is not None else job.base
        file = layout.shards.file_of(name).name if isinstance(layout, Stored) else "model.safetensors"
        files.setdefault(file, {})[name] = (job.stored(name), job.base.entry(name)[1])
    sink = Files(final, files)
    try:
        with meter.stage("merging"):
            rows = run(job, sink, meter.progress)
        with meter.stage("syncing"):
            sink.sync()
    finally:
        sink.close()
    copy_companions(base.directory, final)
    for name in (RECEIPT, ASKED):  # earlier ones, of the base
        (final / name).unlink(missing_ok=True)
    if body := job.base.config() if isinstance(job.base, Mixture) else dict(config_of(job.base if words is None else base)):
        if isinstance(job.base, Layered):
            body = with_layers(body, job.base.parts)
        if job.dtype is not None:
            body |= {key: str(job.dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in body}
        (final / "config.json").write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    if words is not None:
        words.write(final)
    if set(files) != {"model.safetensors"}:
        size = sum(dtype.itemsize * math.prod(shape) for wanted in files.values() for dtype, shape in wanted.values())
        homes = {name: file for file, wanted in files.items() for name in wanted}
        write_json(final / _INDEX, {"metadata": {"total_size": size}, "weight_map": homes})
    return rows


def _layers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the receipt tells of each layer: norms, how much of it changed, and how far the models agree on signs."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if "norm" not in row:
            continue
        parts = str(row["name"]).split(".")
        numbered = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        layer = ".".join(parts[: numbered + 1]) if numbered is not None else str(row["name"]).rpartition(".")[0] or str(row["name"])
        mine = found.setdefault(layer, {"norm": 0.0, "change": 0.0, "agreement": 0.0, "weighed": 0.0})
        mine["norm"] += row["norm"] ** 2
        mine["change"] += row["change"] ** 2
        if row["agreement"] is not None:
            entries = math.prod(row["shape"])
            mine["agreement"] += row["agreement"] * entries
            mine["weighed"] += entries
    return [
        {
            "layer": layer, "norm": math.sqrt(mine["norm"]), "relative_change": math.sqrt(mine["change"] / mine["norm"]) if mine["norm"] else 0.0,
            "sign_agreement": mine["agreement"] / mine["weighed"] if mine["weighed"] else None,
        }
        for layer, mine in found.items()
    ]  # fmt: skip
