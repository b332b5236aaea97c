"""Pictures and sound from files to batches, through the processor that stands beside a model."""

from __future__ import annotations

import hashlib
import inspect
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modicum.core.errors import DataError, ModelError, ModicumError, quoted
from modicum.data import files, sound
from modicum.data.captions import FILE, NAMES, Captions, captions
from modicum.data.splits import PARTS, WINDOW_SHARES, Batch, Splits, divided, parted

# By the input that a model is named for: what its files hold.
KINDS = {"pixel_values": "pictures", "flattened_patches": "pictures", "input_values": "sound", "input_features": "sound"}
SUFFIXES = {
    "pictures": frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}),
    "sound": sound.WAV | sound.OTHERS,
}


def kind_of(module: nn.Module, path: Any = None) -> str:
    """``pictures`` or ``sound`` where a model of Transformers is named for such an input, or takes it beside text and ``path`` is a folder of it
    with captions; else an empty string.
    """
    if kind := KINDS.get(getattr(module, "main_input_name", ""), ""):
        return kind
    taken = [KINDS[name] for name in inspect.signature(module.forward).parameters if name in KINDS]
    if not taken or not isinstance(path, str | os.PathLike) or not Path(path).is_dir():
        return ""
    captioned = any((Path(path) / name).is_file() for name in NAMES)
    return next((kind for kind in taken if captioned and files.find(Path(path), SUFFIXES[kind])), "")


def from_files(
    path: str | os.PathLike[str] | None,
    module: nn.Module,
    directory: str | os.PathLike[str] | None,
    *,
    samples: int = 128,
    seed: int = 0,
    batch: int = 8,
    test_samples: int = 64,
    text_column: str | None = None,
) -> Splits:
    """Split the pictures or recordings of a folder, as ``module`` takes them, by the processor in ``directory``.

    A model that reads text beside them needs it from a table in the folder: ``metadata.csv`` or ``metadata.jsonl`` with the columns ``file_name``
    and ``text`` (or ``text_column``). Files without text are left out then. The text is what the decoder is given, from its start token on,
    or what stands beside the picture, without padding.

    Files are put in an order by a hash of their names, so that folders mix: the first 70 % belong to calibration, the next 10 % to validation,
    the last 20 % to test; in each part ``seed`` draws up to ``samples``, half of ``test_samples``, and ``test_samples`` files. Recordings are
    mixed to one channel and brought to the processor's rate; of longer ones the first 30 seconds are taken. Rows of equal shape share a
    batch, up to ``batch``.

    Raises:
        DataError: no path, or one that is no folder with three different such files; a file that cannot be read, by its name; a forward that
            needs more than the processor gives; a model that reads text where there is none.
        ModelError: no processor stands beside the model, or it cannot be read.

    """
    kind = kind_of(module, path)
    if path is None:
        raise DataError(f"data: {type(module).__name__} takes {kind}, for which modicum ships none. Pass --data FOLDER with {kind} in it.")
    found = files.find(Path(path), SUFFIXES[kind]) if Path(path).is_dir() else []
    told = captions(Path(path), text_column) if Path(path).is_dir() else Captions()
    unsaid = [file for file in found if told.texts and file not in told.texts]
    found = [file for file in found if file not in unsaid] if told.texts else found
    ordered = sorted(_different(found), key=lambda file: hashlib.sha256(file.name.encode()).digest())
    if len(ordered) < len(PARTS):
        raise DataError(
            f"data: {path} must be a folder with at least three different files of {kind} ({', '.join(sorted(SUFFIXES[kind]))}), one for each "
            f"part, {len(ordered)} were found. Other inputs are given as batches from Python."
        )
    rows = _rows_of(kind, module, directory, told.texts, path)
    repeated = len(found) - len(ordered)
    notes = [f"{repeated} of {len(found)} files of {kind} repeat another and were left out."] if repeated else []
    notes += [f"{len(unsaid)} files of {kind} have no text and were left out."] if unsaid else []
    parts: list[list[Batch]] = []
    used = 0
    for name, chosen, wanted in zip(PARTS, divided(ordered, WINDOW_SHARES), (samples, max(1, test_samples // 2), test_samples)):
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:wanted]
        used += len(order)
        if len(order) < wanted:
            notes.append(f"There are {len(order)} files of {kind} for {name}, of the {wanted} asked for.")
        made: Iterable[dict[str, Tensor]] = (rows(chosen[place]) for place in order.tolist())
        if told.texts:  # texts of one length share a batch
            made = sorted(made, key=lambda row: sorted(_shapes(row).items()))
        parts.append(list(_together(made, batch)))
    taken = {"kind": kind, "files": len(found), "used_files": used, "share": used / len(found)}
    taken |= {"columns": sorted(told.columns)} if told.columns else {}
    return replace(parted(parts, os.fspath(path), notes), taken=taken)


def _different(found: Sequence[Path]) -> list[Path]:
    """Files without those that repeat one before them byte by byte: what is calibrated on may not be judged on."""
    sizes = Counter(file.stat().st_size for file in found)
    seen: set[bytes] = set()
    kept = []
    for file in found:
        if sizes[file.stat().st_size] > 1:
            try:
                with file.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").digest()
            except OSError as error:
                raise DataError(f"data: {file} must be readable, it gave: {error}. Check its permissions.") from error
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(file)
    return kept


def _rows_of(
    kind: str, module: nn.Module, directory: str | os.PathLike[str] | None, texts: Mapping[Path, str], path: Any
) -> Callable[[Path], dict[str, Tensor]]:  # fmt: skip
    """From a file to the tensors of one row, checked against what the forward must have."""
    process = _process(kind, module, directory, texts, path)
    known = inspect.signature(module.forward).parameters
    required = {name for name, one in known.items() if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}

    def row(file: Path) -> dict[str, Tensor]:
        try:
            made = process(file)
        except ModicumError:
            raise
        except Exception as error:  # whatever somebody's processor raises
            raise DataError(f"data: {file} is not taken by the model's processor ({quoted(error)}). Leave the file out.") from error
        found = {name: value for name, value in made.items() if name in known and isinstance(value, Tensor)}
        if lacking := sorted(required - found.keys()):
            raise DataError(
                f"data: a batch of {type(module).__name__} must hold {', '.join(lacking)} beside {', '.join(found)}, which {kind} alone do not "
                "give. Give batches from Python."
            )
        return found

    return row


def _process(
    kind: str, module: nn.Module, directory: str | os.PathLike[str] | None, texts: Mapping[Path, str], path: Any
) -> Callable[[Path], Mapping[str, Any]]:  # fmt: skip
    """From a file to everything that the processor makes of it and its text."""
    decodes = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False) and hasattr(module, "get_decoder"))
    beside = not decodes and "input_ids" in inspect.signature(module.forward).parameters
    if (decodes or getattr(module, "main_input_name", "") == "input_ids") and not texts:
        raise DataError(
            f"data: {type(module).__name__} reads text beside {kind}, and {path} names none. Add {NAMES[0]} or {NAMES[1]} with the columns "
            f"{FILE} and text to the folder, or give batches from Python."
        )
    if beside and texts:
        return _both(kind, module, directory, texts)
    processor = _processor(kind, module, directory)
    tokenizer = _tokenizer(module, directory) if decodes else None

    def process(file: Path) -> Mapping[str, Any]:
        given = _given(kind, file, processor)
        words = {"images": given} if kind == "pictures" else {"raw_speech": given, "sampling_rate": processor.sampling_rate}
        made = dict(processor(**words, return_tensors="pt"))
        return made | ({} if tokenizer is None else {"decoder_input_ids": _decoded(module, tokenizer, texts[file])})

    return process


def _both(kind: str, module: nn.Module, directory: Any, texts: Mapping[Path, str]) -> Callable[[Path], Mapping[str, Any]]:
    """What a processor of pictures or sound and text together makes; where the model wants it, a mark stands for the picture in the text."""
    processor = _processor(kind, module, directory, whole=True)
    inner = getattr(processor, "image_processor" if kind == "pictures" else "feature_extractor", processor)
    mark = str(getattr(processor, "image_token" if kind == "pictures" else "audio_token", "") or "")
    told: list[str] = []  # once it was seen: what stands before each text

    def process(file: Path) -> Mapping[str, Any]:
        given = _given(kind, file, inner)
        words = {"images": given} if kind == "pictures" else {"audio": given, "sampling_rate": inner.sampling_rate}
        make = lambda before: processor(text=[f"{before}{texts[file]}"], **words, return_tensors="pt")
        if not told:
            told.append("" if not mark or _has_mark(processor, mark, make) else mark)
        return _begun(module, make(told[0]))

    return process


def _begun(module: nn.Module, made: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the start token of the decoder that answers, where the forward takes what it reads beside a question."""
    if "decoder_input_ids" not in inspect.signature(module.forward).parameters or "decoder_input_ids" in made:
        return made
    text = getattr(module.config, "text_config", None)
    named = ((module, "decoder_start_token_id"), (module.config, "decoder_start_token_id"), (text, "bos_token_id"))
    start = next((found for one, name in named if isinstance(found := getattr(one, name, None), int)), None)
    return made if start is None else {**made, "decoder_input_ids": torch.tensor([[start]])}


def _has_mark(processor: Any, mark: str, make: Callable[[str], Mapping[str, Any]]) -> bool:
    """Whether a processor writes the mark of a picture or a recording into the text by itself."""
    try:
        ids = make("")["input_ids"]
    except Exception:  # whatever a processor raises at a picture that the text does not name
        return False
    return bool((ids == processor.tokenizer.convert_tokens_to_ids(mark)).any())


def _given(kind: str, file: Path, processor: Any) -> Any:
    return _picture(file) if kind == "pictures" else sound.recorded(file, processor.sampling_rate)


def _decoded(module: nn.Module, tokenizer: Any, text: str) -> Tensor:
    """What the decoder reads of a text: its start token, then all but the last of the text's own."""
    config: Any = module.config
    inner = getattr(config, "decoder", None)
    start = next((found for one in (config, inner) if (found := getattr(one, "decoder_start_token_id", None)) is not None), None)
    start = tokenizer.bos_token_id if start is None else start
    ids = list(tokenizer(text).input_ids)
    most = getattr(config, "max_target_positions", None) or getattr(inner, "max_position_embeddings", None) or len(ids) + 1
    if start is None:
        raise ModelError(f"{type(module).__name__}: its config must name the token that its decoder starts with, names none. Add it.")
    return torch.tensor([([] if ids[:1] == [start] else [start]) + ids[:-1]])[:, :most]


def _tokenizer(module: nn.Module, directory: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # whatever a folder without one raises
        raise ModelError(
            f"{type(module).__name__}: must have a tokenizer beside it for its texts, reading one gave: {quoted(error)}. Add the tokenizer's files."
        ) from None


def has_processor(directory: str | os.PathLike[str]) -> bool:
    """Whether a processor of pictures or sound stands in a folder, alone or in one of text too."""
    return any((Path(directory) / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))


def _processor(kind: str, module: nn.Module, directory: str | os.PathLike[str] | None, *, whole: bool = False) -> Any:
    """The processor of pictures or sound, or the ``whole`` one that takes text too."""
    import transformers

    loader: Any = (
        transformers.AutoProcessor
        if whole
        else transformers.AutoImageProcessor
        if kind == "pictures"
        else transformers.AutoFeatureExtractor
    )
    if directory is None or not has_processor(directory):
        raise ModelError(f"{type(module).__name__}: has no processor beside it, which {kind} need. Add its preprocessor_config.json.")
    try:
        return loader.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # whatever a config that is none raises
        raise ModelError(f"{directory}: its processor cannot be read ({quoted(error)}). Fetch preprocessor_config.json again.") from None


def _picture(file: Path) -> Any:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                return opened.convert("RGB")
    except Exception as error:  # whatever a decoder raises at bytes that are no picture
        raise _unreadable(file, "picture", error) from error


def _unreadable(file: Path, what: str, error: Exception) -> DataError:
    return DataError(f"data: {file} must be a {what}, reading it gave: {quoted(error)}. Mend the file or leave it out.")


def _together(rows: Iterable[Mapping[str, Tensor]], most: int) -> Iterator[Batch]:
    """Rows that follow one another and have equal shapes, as batches of at most ``most``."""
    held: list[Mapping[str, Tensor]] = []
    for row in rows:
        if held and (len(held) == most or _shapes(held[0]) != _shapes(row)):
            yield {name: torch.cat([one[name] for one in held]) for name in held[0]}
            held = []
        held.append(row)
    if held:
        yield {name: torch.cat([one[name] for one in held]) for name in held[0]}


def _shapes(row: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in row.items()}
