"""Quality of a model that is already written, on its own or against its original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modicum.core.arguments import checked
from modicum.core.errors import DataError, ModelError, SettingError, quoted
from modicum.core.progress import Quiet, ticked
from modicum.core.settings import require_seed
from modicum.data.forward import LABELS_LEFT_OUT, is_labelled
from modicum.data.media import from_files, has_processor, kind_of
from modicum.data.splits import Batch, batch_items, count_rows, count_tokens, from_text
from modicum.export import load
from modicum.export.source import open_source
from modicum.judge.quality import Quality, compare, plain, require
from modicum.measure.settings import judged_by
from modicum.models.dequantized.view import decodable
from modicum.models.evaluating import evaluating
from modicum.models.located import is_gguf, locate
from modicum.receipt.computed import computing
from modicum.receipt.tasks import on_tasks, require_harness
from modicum.receipt.trimmed import Trim
from modicum.sweep.observe import Watch, masks_of, outputs_among
from modicum.sweep.outputs import Outputs, convolved, described
from modicum.vocabulary.kept import kept_tokens, same_spelling

EVALUATION_FORMAT, EVALUATION_VERSION = "modicum-evaluation", 1
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")


@checked()
def evaluate(
    model: str | Path | nn.Module,
    *,
    data: Any = None,
    text_column: str | None = None,
    reference: str | Path | nn.Module | None = None,
    samples: int = 64,
    tokens: int = 512,
    seed: int = 0,
    output: str | int | Callable[[Any], Any] | None = None,
    classes: str | int | None = None,
    compute: str = "auto",
    lm_eval: str | None = None,
    progress: Quiet | None = None,
) -> dict[str, Any]:
    """Measure a model's perplexity and, against a ``reference``, its mean KL per token.

    ``model`` and ``reference``: a directory that ``fit`` wrote, one that Transformers loads, a Hugging Face id, ``demo``, or a module. ``data``: a
    path to text (of a table the column ``text_column``), of which the same test part is used that ``fit`` reports on, so that neither is judged
    on what it was calibrated with; an iterable of batches, all of which are used; or None for the shipped test text. ``samples`` windows of
    ``tokens`` tokens are drawn from text by ``seed``: those of ``fit``'s receipt where all three are equal. Modules are judged in evaluation
    mode and left as they came. ``output``: what of the output is judged, names or places separated by commas, or a function; by default all
    that is no inner state, cache or loss. ``classes``: the axis of its classes, ``independent``, or ``none``; by default what
    its name, shape and config tell. ``compute``: the dtype both compute in, ``float32``, ``bfloat16``, or ``auto``: of half precision what is
    faster on this processor. Padding that a mask of the batch marks counts nowhere.

    On text both models must have one vocabulary, or the model's must be the reference's as ``trim`` makes it smaller. Then the reference is
    judged as a model of the tokens that stayed, its probabilities those given that one of them comes, and ``vocabulary`` tells the rest: ``tokens``
    kept ``of`` how many, the share of the reference's tokens ``changed`` in the text, and of causal models the probability that it gives to
    tokens that went (``lost_mass``) and ``bits_per_byte`` on one and the same text: of the ``original``, of its ``kept tokens``, of the ``model``.

    ``lm_eval``: tasks of lm-evaluation-harness to run as well, by name or as folders of task files, separated by commas; it needs the extra
    ``modicum[lm-eval]``. ``tasks`` then has a row for each task and metric: ``value`` and standard ``error`` of the model, with a reference
    ``original`` and ``original_error``, and the number of ``samples``. Files of tasks may run code of their own.

    The result is a JSON value: ``model``, ``reference``, ``data`` (source, notes, hash of the sequences), ``seed``, and ``quality``: sequences,
    tokens, ``perplexity`` of a causal language model, and with a reference ``metric``, its ``mean`` and bootstrap 95 % interval ``low`` to ``high``
    (KL in nats per token, or the relative squared error of outputs without logits) of the first output, of values of the one that differs
    most, ``outputs`` (each with how it is judged and its mean), and ``perplexity_original``.

    Needs and cost: one forward pass of each model, both in memory.

    Raises:
        SettingError: nothing can be measured without a reference; a count below 1.
        ModelError: a model that cannot be loaded, has no tokenizer for text, gives NaN, whose outputs differ in shape from the reference's, or from
            one run to the next.
        DataError: text that cannot be read or is too short; no batch.

    """
    require_seed(seed)
    if lm_eval is not None:
        require_harness()
    candidate = _opened(model)
    whole = original = _opened(reference) if reference is not None else None
    models = [part for part in (candidate, original) if part]
    trim = _trim(models) if _reads_text(data, models) else None
    batches, described = _batches(data, models, samples, tokens, seed, text_column)
    described["notes"] = [*described["notes"], *(part.note for part in models if part.note)]
    causal = _is_causal(candidate.module)
    if original is None and not causal:
        raise SettingError(f"{candidate.name}: is no causal language model, which needs a reference. Pass one.")
    if original and trim:
        original = replace(original, module=trim.narrowed(original.module, _vocabulary_rows(candidate)))
    shown = progress or Quiet()
    modules = [part.module for part in (whole, original, candidate) if part]
    with (
        evaluating(candidate.module), evaluating(original.module if original else None), computing(modules, compute, batches[0]) as computed,
    ):  # fmt: skip
        outputs, told = _outputs(original or candidate, batches, output, classes)
        described["notes"] = [*described["notes"], *told]
        shown.start("judge", len(batches))
        quality = _compared(candidate, original, batches, causal, outputs, shown.step).summary(seed)
        vocabulary = {"vocabulary": trim.facts(modules, batches, causal)} if trim else {}
        judged = [candidate, whole] if whole else [candidate]
        reading = [(one.name, one.module, _tokenizer([one, *judged])) for one in judged] if lm_eval is not None else []
        rows, heard = on_tasks(lm_eval, reading, seed) if lm_eval is not None else ([], [])
        described["notes"] = [*described["notes"], *heard]
    if original is None and "perplexity" not in quality:
        raise ModelError(
            f"{candidate.name}: its logits must be one for each token of its text for a perplexity, are not. Pass a reference."
        )
    if original is None:
        quality = {name: quality[name] for name in ("sequences", "tokens", "perplexity")}
    return {
        "format": EVALUATION_FORMAT, "version": EVALUATION_VERSION, "model": candidate.name,
        "reference": original.name if original else None, "data": described, "seed": seed, "quality": quality, **vocabulary,
        **({"tasks": rows} if rows else {}),
        "compute": {"asked": compute} | computed.to_json(),
    }  # fmt: skip


@dataclass(frozen=True)
class _Opened:
    name: str
    module: nn.Module
    directory: Path | None
    note: str = ""


def _opened(source: str | Path | nn.Module) -> _Opened:
    if isinstance(source, nn.Module):
        return _Opened(type(source).__name__, source, None)
    if is_gguf(source):
        return _decoded(source)
    directory = locate(source)
    try:
        return _Opened(str(source), load(directory), directory)
    except ModelError as error:
        if not decodable(directory):
            raise
        why = quoted(error)
        return _decoded(
            directory, f"{source}: its weights are read as what their codes stand for, its own loader does not run here ({why})"
        )


def _decoded(source: str | Path, note: str = "") -> _Opened:
    model = open_source(source, allow_quantized_source=True)
    model.weights.load(model.weights.names)
    return _Opened(str(source), model.module.eval(), model.directory, note)


def _batches(
    data: Any, models: list[_Opened], samples: int, tokens: int, seed: int, text_column: str | None
) -> tuple[list[Batch], dict[str, Any]]:
    if data is None or isinstance(data, str | Path):
        if not _reads_text(data, models):
            return _files(data, models, samples, seed, text_column)
        splits = from_text(data, _tokenizer(models), samples=1, tokens=tokens, seed=seed, test_samples=samples, text_column=text_column)
        found = sum(len(batch["input_ids"]) for batch in splits.test if isinstance(batch, dict))
        notes = [f"The text gives {found} sequences of {tokens} tokens, of the {samples} asked for."] if found < samples else []
        used = count_tokens(splits.test)
        taken = splits.taken | {"used_tokens": used, "share": used / max(1, splits.taken["tokens"])}
        return splits.test, {"source": splits.source, "notes": notes, "hash": splits.hashes["test"], "taken": taken}
    batches = [_batch(item) for item in batch_items(data)]
    require(batches)
    notes = []
    if all(is_labelled(model.module, batches) for model in models):
        batches, notes = [batch[:1] for batch in batches if isinstance(batch, tuple)], [LABELS_LEFT_OUT]
    return batches, {"source": "batches", "notes": notes, "hash": None}


def _files(path: Any, models: list[_Opened], samples: int, seed: int, text_column: str | None) -> tuple[list[Batch], dict[str, Any]]:
    """The test part of pictures or recordings, as the processor beside one of the models makes it."""
    directory = next((model.directory for model in models if model.directory and has_processor(model.directory)), None)
    splits = from_files(path, models[-1].module, directory, samples=1, seed=seed, test_samples=samples, text_column=text_column)
    found = sum(map(count_rows, splits.test))
    notes = [f"There are {found} files of {splits.taken['kind']} to judge on, of the {samples} asked for."] if found < samples else []
    return splits.test, {"source": splits.source, "notes": notes, "hash": splits.hashes["test"], "taken": splits.taken}


def _batch(item: Any) -> Batch:
    batch: Batch = dict(item) if isinstance(item, Mapping) else tuple(item) if isinstance(item, tuple | list) else (item,)
    values = batch.values() if isinstance(batch, dict) else batch
    if not batch or not all(isinstance(value, Tensor) for value in values):
        raise DataError(f"data: a batch must be a tensor, or a dict or tuple of tensors, {type(item).__name__} came. Convert it.")
    return batch


def _tokenizer(models: list[_Opened]) -> Any:
    from transformers import AutoTokenizer

    for model in models:
        if model.directory and any((model.directory / name).exists() for name in _TOKENIZER_FILES):
            try:
                return AutoTokenizer.from_pretrained(model.directory, trust_remote_code=False)
            except Exception as error:
                raise ModelError(
                    f"{model.name}: its tokenizer cannot be read ({quoted(error)}). Fetch the tokenizer's files again."
                ) from None
    names = " and ".join(model.name for model in models)
    raise ModelError(f"{names}: no tokenizer is there, which text needs. Give token batches, or add the tokenizer's files.")


def _reads_text(data: Any, models: list[_Opened]) -> bool:
    return (data is None or isinstance(data, str | Path)) and not kind_of(models[-1].module, data)


def _trim(models: list[_Opened]) -> Trim | None:
    """How the model's vocabulary was trimmed from the reference's; None where both have one.

    Raises ``ModelError`` where they read a text as different tokens otherwise: what one says of them tells nothing of the other.
    """
    having = [model for model in models if model.directory and any((model.directory / name).exists() for name in _TOKENIZER_FILES)]
    if len(having) < 2:
        return None
    candidate, original = having
    ours, theirs = (_tokenizer([model]) for model in having)
    if kept := kept_tokens(theirs, ours):
        return Trim(theirs, ours, torch.tensor(kept))
    if (one := ours.get_vocab()) != (other := theirs.get_vocab()):
        alike = sum(other.get(token) == number for token, number in one.items())
        differs = f"of its {len(one)} tokens {alike} have the number they have among the reference's {len(other)}"
    elif not same_spelling(ours, theirs):
        differs = "it divides text into the same tokens by other rules"
    else:
        return None
    raise ModelError(
        f"{candidate.name}: its tokenizer must be that of the reference, {original.name}, or what trim makes of it, and {differs}. "
        "Give its original, or no reference."
    )


def _vocabulary_rows(model: _Opened) -> int:
    return len(model.module.get_input_embeddings().weight)  # type: ignore[operator]


def _is_causal(module: nn.Module) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return type(module).__name__ in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def _outputs(model: _Opened, batches: list[Batch], output: Any, classes: Any) -> tuple[Outputs, list[str]]:
    """What of the outputs is judged, with the masks that cover them, and what a reader must know of those."""
    run = lambda batch: next(plain(model.module, [batch]))[1]
    with convolved(model.module) as maps:
        first = run(batches[0])
    found = described(first, getattr(model.module, "config", None), *judged_by(output, classes), maps)
    outputs, learnt = masks_of(Watch(model.module, run, found), batches, found)
    return outputs, replace(learnt, loose={mask: mine for mask, names in learnt.loose.items() if (mine := outputs_among(names))}).events()


def _compared(
    candidate: _Opened, original: _Opened | None, batches: list[Batch], causal: bool, outputs: Outputs, tick: Callable[[], None]
) -> Quality:  # fmt: skip
    if original is None:
        # One run stands on both sides: perplexity is its own, the divergence is dropped.
        once, again = tee(ticked(plain(candidate.module, batches), tick))
        return compare(once, again, batches, causal, outputs)
    left, right = tee(ticked(_pairs(candidate, original, batches, outputs), tick))
    return compare((theirs for theirs, _ in left), (ours for _, ours in right), batches, causal, outputs)


def _pairs(
    candidate: _Opened, original: _Opened, batches: list[Batch], outputs: Outputs
) -> Iterator[tuple[tuple[int, Any], tuple[int, Any]]]:  # fmt: skip
    """Outputs of the original and of the candidate, in step, so that one batch's are held at a time."""
    for theirs, ours in zip(plain(original.module, batches), plain(candidate.module, batches)):
        for one, other in zip(outputs.of(ours[1]), outputs.of(theirs[1])):
            shapes = [tuple(value.shape) for _, value in (one, other)]
            if shapes[0] != shapes[1]:
                raise ModelError(
                    f"{candidate.name}: its outputs must have the shape of the reference's, {shapes[1]}, have {shapes[0]}. Give its original."
                )
        yield theirs, ours
