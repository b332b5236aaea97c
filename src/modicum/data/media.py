"""Pictures and sound from files to batches, through the processor that stands beside a model."""

from __future__ import annotations

import hashlib
import inspect
import os
import warnings
import wave
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modicum.core.errors import DataError, ModelError, quoted
from modicum.data import files
from modicum.data.splits import PARTS, WINDOW_SHARES, Batch, Splits, divided, parted

# By the input that a model is named for: what its files hold.
KINDS = {"pixel_values": "pictures", "input_values": "sound", "input_features": "sound"}
SUFFIXES = {
    "pictures": frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}),
    "sound": frozenset({".wav", ".wave"}),
}
# Of a longer recording the first seconds are taken.
SECONDS = 30
_WIDTHS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<i2"), 4: np.dtype("<i4")}


def kind_of(module: nn.Module) -> str:
    """``pictures`` or ``sound`` where a model of Transformers is named for such an input, else an empty string."""
    return KINDS.get(getattr(module, "main_input_name", ""), "")


def from_files(
    path: str | os.PathLike[str] | None,
    module: nn.Module,
    directory: str | os.PathLike[str] | None,
    *,
    samples: int = 128,
    seed: int = 0,
    batch: int = 8,
    test_samples: int = 64,
) -> Splits:
    """Split the pictures or recordings of a folder, as ``module`` takes them, by the processor in ``directory``.

    Files are put in an order by a hash of their names, so that folders mix: the first 70 % belong to calibration, the next 10 % to validation,
    the last 20 % to test; in each part ``seed`` draws up to ``samples``, half of ``test_samples``, and ``test_samples`` files. Recordings are
    mixed to one channel and brought to the processor's rate; of longer ones the first 30 seconds are taken. Rows of equal shape share a
    batch, up to ``batch``.

    Raises:
        DataError: no path, or one that is no folder with three different such files; a file that cannot be read, by its name; a forward that
            needs more than the processor gives.
        ModelError: no processor stands beside the model, or it cannot be read.

    """
    kind = kind_of(module)
    if path is None:
        raise DataError(f"data: {type(module).__name__} takes {kind}, for which modicum ships none. Pass --data FOLDER with {kind} in it.")
    found = files.find(Path(path), SUFFIXES[kind]) if Path(path).is_dir() else []
    ordered = sorted(_different(found), key=lambda file: hashlib.sha256(file.name.encode()).digest())
    if len(ordered) < len(PARTS):
        raise DataError(
            f"data: {path} must be a folder with at least three different files of {kind} ({', '.join(sorted(SUFFIXES[kind]))}), one for each "
            f"part, {len(ordered)} were found. Other inputs are given as batches from Python."
        )
    rows = _rows_of(kind, module, directory)
    repeated = len(found) - len(ordered)
    notes = [f"{repeated} of {len(found)} files of {kind} repeat another and were left out."] if repeated else []
    parts: list[list[Batch]] = []
    used = 0
    for name, chosen, wanted in zip(PARTS, divided(ordered, WINDOW_SHARES), (samples, max(1, test_samples // 2), test_samples)):
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:wanted]
        used += len(order)
        if len(order) < wanted:
            notes.append(f"There are {len(order)} files of {kind} for {name}, of the {wanted} asked for.")
        parts.append(list(_together((rows(chosen[place]) for place in order.tolist()), batch)))
    taken = {"kind": kind, "files": len(found), "used_files": used, "share": used / len(found)}
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


def _rows_of(kind: str, module: nn.Module, directory: str | os.PathLike[str] | None) -> Callable[[Path], dict[str, Tensor]]:
    """From a file to the tensors of one row, checked against what the forward must have."""
    processor = _processor(kind, module, directory)
    known = inspect.signature(module.forward).parameters
    required = {name for name, one in known.items() if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}

    def row(file: Path) -> dict[str, Tensor]:
        given = _picture(file) if kind == "pictures" else _sound(file, processor.sampling_rate)
        words = {"images": given} if kind == "pictures" else {"raw_speech": given, "sampling_rate": processor.sampling_rate}
        try:
            made = processor(**words, return_tensors="pt")
        except Exception as error:  # whatever somebody's processor raises
            raise DataError(f"data: {file} is not taken by the model's processor ({quoted(error)}). Leave the file out.") from error
        found = {name: value for name, value in made.items() if name in known and isinstance(value, Tensor)}
        if lacking := sorted(required - found.keys()):
            raise DataError(
                f"data: a batch of {type(module).__name__} must hold {', '.join(lacking)} beside {', '.join(found)}, which {kind} alone do not "
                "give. Give batches from Python."
            )
        return found

    _require_alone(module, kind)
    return row


def _require_alone(module: nn.Module, kind: str) -> None:
    """Raise ``DataError`` for a model that reads text beside its pictures or sound."""
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False) and hasattr(module, "get_decoder"):
        raise DataError(
            f"data: {type(module).__name__} reads text beside {kind}, which no folder of {kind} gives. Give batches from Python, with "
            "decoder_input_ids."
        )


def _processor(kind: str, module: nn.Module, directory: str | os.PathLike[str] | None) -> Any:
    import transformers

    loader: Any = transformers.AutoImageProcessor if kind == "pictures" else transformers.AutoFeatureExtractor
    names = ("preprocessor_config.json", "processor_config.json")
    if directory is None or not any((Path(directory) / name).is_file() for name in names):
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


def _sound(file: Path, rate: int) -> np.ndarray:
    """The recording as float32 (samples,) at ``rate`` a second."""
    from scipy.signal import resample_poly

    try:
        with wave.open(str(file), "rb") as opened:
            own, channels, width = opened.getframerate(), opened.getnchannels(), opened.getsampwidth()
            data = opened.readframes(min(opened.getnframes(), SECONDS * own))
        values = _numbers(data, width).reshape(-1, channels).mean(1)
        if not len(values):
            raise ValueError("it holds no sound")
        step = gcd(own, rate)
        return (values if own == rate else resample_poly(values, rate // step, own // step)).astype(np.float32)
    except Exception as error:  # whatever the reader raises at bytes that are no recording
        raise _unreadable(file, "WAV recording in PCM", error) from error


def _numbers(data: bytes, width: int) -> np.ndarray:
    """Samples between -1 and 1."""
    if width == 3:  # into the upper three of four bytes
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8, len(padded) * 3).reshape(-1, 3)
        data, width = padded.tobytes(), 4
    values = np.frombuffer(data, _WIDTHS[width], len(data) // width).astype(np.float64)
    return (values - 128) / 128 if width == 1 else values / 2.0 ** (8 * width - 1)


def _unreadable(file: Path, what: str, error: Exception) -> DataError:
    return DataError(f"data: {file} must be a {what}, reading it gave: {quoted(error)}. Mend the file or leave it out.")


def _together(rows: Iterator[Mapping[str, Tensor]], most: int) -> Iterator[Batch]:
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
