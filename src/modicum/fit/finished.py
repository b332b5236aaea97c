"""A finished result, or a pruned checkpoint, healed: trained beside its original, and written in the same bytes but for what moved."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.core.arguments import checked
from modicum.core.errors import ModelError, SettingError, listed
from modicum.core.files import sha256
from modicum.core.output import write_receipt
from modicum.core.progress import Quiet
from modicum.core.tensorfile import Shards
from modicum.data.forward import require_tokens
from modicum.data.splits import Splits, from_text
from modicum.delta.applying import copied, patch
from modicum.export.loaded import loaded
from modicum.fit.dense import densify
from modicum.fit.heal import TOP, paired
from modicum.fit.receipts import FILE, read_receipt
from modicum.fit.stored import Stored, stored
from modicum.fit.stored_gguf import GGUF, put
from modicum.judge.quality import Quality, RuinedError, compare, plain
from modicum.measure.settings import Settings
from modicum.measure.subject import Subject
from modicum.models.located import locate
from modicum.models.open import model_class, open_model, read_config
from modicum.models.trainable import trainable
from modicum.sweep.outputs import Outputs
from modicum.train.healing import Healed, healers
from modicum.train.healing import heal as trained
from modicum.train.objectives import distillation, imitation
from modicum.train.settings import Loop
from modicum.work.meter import Meter
from modicum.work.workdir import WorkDir

KIND, FORMAT = "modicum-healing", "modicum-healed"
# What tells of a result's making, and is another afterwards.
_TOLD = ("receipt.json", "report.html", "run.yaml")
Page = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Finished:
    """What was written: the folder, its receipt, and the account of healing in it."""

    out: Path
    receipt: dict[str, Any]

    @property
    def healing(self) -> dict[str, Any]:
        """Steps, losses, quality before and after."""
        told: dict[str, Any] = self.receipt["healing"]
        return told


@checked()
def heal(
    directory: str | Path, out: str | Path, *, reference: str | Path | None = None, method: str = "norms, held", data: str | Path | None = None,
    tokens: int | None = None, samples: int | None = None, test_samples: int | None = None, text_column: str | None = None,
    overwrite: bool = False, progress: Quiet | None = None, loop: Loop | None = None, page: Page | None = None,
) -> Finished:  # fmt: skip
    """Train what a compressed model keeps until it answers as its original, and write it in the same bytes but for that.

    Language models learn the next token's distribution, others their first output, whatever it is.

    ``directory``: what ``fit`` wrote for targets modicum, transformers or gguf (of which vectors alone move), or a dense checkpoint whose zeros are
    held. ``reference``: its original, which the receipt names by default. ``method``: what is trained, by commas, as for ``fit``. ``data`` and its
    sizes are those of the receipt by default. What is no better on validation data is left as it was, and the receipt says so. An interrupted
    training goes on where it was.

    *Needs and cost:* both models in memory.

    *Raises*: ``SettingError`` for a folder without a model, an original that nobody names, an ``out`` that must not be written; ``ModelError`` for
    models that do not go together.
    """
    settings, source = loop or Loop(), locate(directory)
    receipt = read_receipt(source / FILE) if (source / FILE).is_file() else None
    original = _original(source, reference, receipt)
    place = WorkDir(Path(out), KIND, overwrite, (source, Path(original) if Path(original).exists() else source))
    place.check()
    methods, meter = healers(method), Meter(progress)
    said = {"tokens": tokens, "samples": samples, "test_samples": test_samples, "text_column": text_column, "data": data}
    with place.held():
        asked = repr([str(source), str(original), method, asdict(settings), said, _marks(source)])
        folder = place.begin(hashlib.sha256(asked.encode()).hexdigest())
        with meter.stage("open", 1):
            splits, outputs = _data(original, said, receipt, settings)
            kept = stored(source, dense := _dense(source, folder))
            teacher, student = (_module(path) for path in (locate(original), dense))
            _require_alike(teacher, student, source)
            if outputs is None:
                require_tokens(teacher, [batch for part in (splits.calibration, splits.validation, splits.test) for batch in part])
        forms = {name: form for name, form in kept.forms.items() if torch.equal(form.dense(), _held(student, name))}
        vectors = {name: value.detach().clone() for name, value in student.named_parameters() if name in kept.vectors}
        wide = [module.float().requires_grad_(False) for module in (teacher, student)]
        judge = lambda batches: compare(plain(wide[0], batches), plain(wide[1], batches), batches, outputs is None, outputs)
        objective = distillation(teacher, top=TOP) if outputs is None else imitation(teacher, outputs)
        with meter.stage("judge", 1):
            before = [judge(batches) for batches in (splits.validation, splits.test)]
        with meter.stage("heal", settings.steps):
            found = trained(
                student, forms, vectors, splits.calibration, objective, settings, methods, keep=folder, progress=meter.progress,
            )  # fmt: skip
        with meter.stage("judge", 1):
            after = _after(wide[1], found, lambda: [judge(batches) for batches in (splits.validation, splits.test)])
        healing = _account(found, method, settings, before, after)
        healing["events"] += _another(locate(original), receipt)
        final = folder / "final"
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        with meter.stage("export", 1):
            copied(source, final, _TOLD)
            if healing["taken"]:
                _write(source, final, kept, found)
                _verify(final, folder, found)
        told = _receipt(
            receipt, final, source, str(original), healing, splits, (after or before)[1] if healing["taken"] else before[1], settings
        )
        write_receipt(final, told)
        if page is not None and receipt is not None:
            (final / "report.html").write_text(page(told), encoding="utf-8")
        place.finish(final)
    return Finished(place.out, told)


def _original(source: Path, reference: str | Path | None, receipt: Mapping[str, Any] | None) -> str:
    if reference is None and receipt is None:
        raise SettingError(f"{source}: has no receipt that names its original. Pass --reference MODEL.")
    return str(reference) if reference is not None else str(receipt["model"]["name"])  # type: ignore[index]


def _another(original: Path, receipt: Mapping[str, Any] | None) -> list[str]:
    """What is to be told where the original is another than the one that a result was made of."""
    known = {} if receipt is None else receipt["model"].get("files") or {}
    differs = [name for name, told in known.items() if not (original / name).is_file() or sha256(original / name) != told]
    said = "healing: what it learnt from is another model than the one that it was made of, {} differs."
    return [said.format(differs[0])] if differs else []


def _marks(source: Path) -> list[tuple[str, int, int]]:
    return [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted((*source.glob("*.safetensors"), *source.glob("*.gguf")))
    ]


def _data(original: str, said: Mapping[str, Any], receipt: Mapping[str, Any] | None, loop: Loop) -> tuple[Splits, Outputs | None]:
    """The sequences that were asked for, else those of the receipt; what is judged where the model tells no next token.

    Raises ``SettingError`` where the receipt's were batches from Python.
    """
    known: dict[str, Any] = {"tokens": 512, "samples": 128, "test_samples": 64, "text_column": None}
    source, seed = said["data"], loop.seed
    if receipt is not None:
        known |= {name: value for name, value in receipt["request"].items() if name in known}
        if source is None and receipt["data"]["source"] == "batches":
            raise SettingError("heal: the result's data were batches from Python, which nobody can read again. Pass --data.")
        source = source if source is not None or receipt["data"]["source"] == "shipped" else receipt["data"]["source"]
    known |= {name: said[name] for name in known if said[name] is not None}
    model = open_model(locate(original))
    if model.is_causal:
        return from_text(source, model.tokenizer, seed=seed, batch=loop.batch, **known), None
    settings = Settings(data=None if source is None else str(source), seed=seed, micro_batch=loop.batch, **known)
    subject = Subject.open(model, settings)
    return subject.data, subject.script.outputs


def _dense(source: Path, folder: Path) -> Path:
    """The result as a dense checkpoint, made once."""
    config = getattr(read_config(source), "quantization_config", None)
    if not any((source / name).is_file() for name in ("modicum.json", GGUF)) and config is None:
        return source
    if not (folder / "dense").exists():
        densify(source, folder / "dense")
    return folder / "dense"


def _module(directory: Path) -> nn.Module:
    return loaded(model_class(read_config(directory), str(directory)), directory).eval()


def _held(module: nn.Module, name: str) -> torch.Tensor:
    unit = trainable(module)[name]
    return unit.matrix(module.get_parameter(unit.parameter).detach())


def _require_alike(teacher: nn.Module, student: nn.Module, source: Path) -> None:
    if type(teacher) is not type(student):
        raise ModelError(f"{source}: must be of the class of its original, is {type(student).__name__} of {type(teacher).__name__}.")
    if (sizes := [_answers(module) for module in (teacher, student)])[0] != sizes[1]:
        raise ModelError(f"{source}: must give as many answers as its original, gives {sizes[1]} for {sizes[0]}.")


def _answers(module: nn.Module) -> int | None:
    """How many tokens or classes a model tells apart; None where nobody says."""
    head: Any = getattr(module, "get_output_embeddings", lambda: None)()
    return getattr(getattr(module, "config", None), "num_labels", None) if head is None else len(head.weight)


def _after(student: nn.Module, found: Healed, judge: Callable[[], list[Quality]]) -> list[Quality] | None:
    """Quality with what was trained in the student's parameters; None where it is no number."""
    units = trainable(student)
    for name, value in [*((name, form.dense()) for name, form in found.forms.items()), *found.vectors.items()]:
        unit = units[name]
        parameter = student.get_parameter(unit.parameter)
        place = parameter.data if unit.expert is None else parameter.data[unit.expert]
        place.copy_(unit.stored(value.reshape(unit.shape)).reshape(place.shape))
    try:
        return judge() if found.losses else None
    except RuinedError:
        return None


def _account(found: Healed, method: str, loop: Loop, before: list[Quality], after: list[Quality] | None) -> dict[str, Any]:
    judged = paired(before[0].divergence, None if after is None else after[0].divergence)
    taken = after is not None and judged["after"] < judged["before"]
    events = [found.event] if found.event else []
    if not taken and not events:
        events.append(f"healing: was left out, it made the model no better on validation data ({judged['before']:.4g} before).")
    account = {
        "steps": loop.steps, "with": method, "rate": loop.rate, "batch": loop.batch, "trained": found.trained, "methods": dict(found.methods),
        "losses": found.losses, "seconds": found.seconds, "validation": judged, "taken": taken, "events": events,
    }  # fmt: skip
    if taken and after is not None:
        account |= {"before": before[1].summary(loop.seed), "test": paired(before[1].divergence, after[1].divergence)}
    return account


def _write(source: Path, final: Path, kept: Stored, found: Healed) -> None:
    """Put what moved into the copied files, each tensor in its place."""
    if (source / GGUF).is_file():
        put(source, final / GGUF, found.vectors)
        return
    with Shards(source) as shards:
        for name, form in found.forms.items():
            for key, tensor in kept.written(name, form).items():
                patch(final / shards.file_of(key).name, shards.entry(key), tensor)
        for name, value in found.vectors.items():
            key = kept.vectors[name]
            patch(final / shards.file_of(key).name, shards.entry(key), value.to(shards.entry(key).dtype))


def _verify(final: Path, folder: Path, found: Healed) -> None:
    """Read what was written by its own loader. Raises ``ModelError`` where a weight is not the one that was trained."""
    again = folder / "again"
    shutil.rmtree(again, ignore_errors=True)
    again.mkdir()
    module = _module(_dense(final, again))
    wanted = {name: form.dense() for name, form in found.forms.items()} | {name: value[None] for name, value in found.vectors.items()}
    wrong = [name for name, value in wanted.items() if not torch.equal(_held(module, name), value)]
    if wrong:
        raise ModelError(f"{final}: must be read as it was trained, {listed(sorted(wrong))} differ. Report this.")


def _receipt(
    receipt: dict[str, Any] | None, final: Path, source: Path, original: str, healing: dict[str, Any], splits: Splits, quality: Quality,
    loop: Loop,
) -> dict[str, Any]:  # fmt: skip
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(final.glob("*.safetensors"))}
    told = quality.summary(loop.seed)
    if receipt is None:
        return {
            "format": FORMAT, "version": 1, "model": original, "source": str(source), "files": files, "quality": told, "healing": healing,
            "data": {"source": splits.source, "hashes": splits.hashes},
        }  # fmt: skip
    return receipt | {
        "bytes": receipt["bytes"] | {"files": files}, "quality": told, "healing": healing, "events": [*receipt["events"], *healing["events"]],
    }  # fmt: skip
