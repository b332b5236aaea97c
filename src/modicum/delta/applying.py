"""A checkpoint with deltas applied, written beside its base's layout to the byte, and taken back."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.core.files import leads_outside, read_json, sha256, write_json
from modicum.core.output import writing
from modicum.core.tensorfile import Shards
from modicum.core.tensorformat import Entry, raw_bytes
from modicum.delta.delta import Delta
from modicum.models.laid import laid
from modicum.models.located import locate
from modicum.models.open import open_model
from modicum.models.trainable import trainable
from modicum.models.weights import CheckpointWeights, require_finite

_RECORD, _DISPLACED = "applied.json", "displaced.bin"
_FORMAT, _VERSION = "modicum-applied", 1
_COPIED = 16 << 20  # bytes of a file that are copied at a time


@dataclass(frozen=True)
class Applied:
    """What was written: ``changed`` tensors by their names on disk, and ``displaced`` bytes that are kept so that the base can be had again.

    ``notes`` say what the deltas say of themselves.
    """

    out: Path
    changed: tuple[str, ...]
    displaced: int
    notes: tuple[str, ...] = ()


def apply(
    base: str | Path, deltas: Sequence[Delta], out: str | Path, *, scale: float = 1.0, overwrite: bool = False, reversible: bool = True
) -> Applied:
    """Write the checkpoint ``base`` with deltas applied, their changes added and times ``scale``.

    Files keep their layout to the byte, and only what changes is written anew, in the dtype that is stored: weights are computed in float32 or wider
    and rounded once. One tensor is in memory at a time. What was displaced is kept, compressed, in ``displaced.bin``, unless it is not to be
    ``reversible``; ``revert`` then gives back the base's bytes from the result alone.

    Raises ``ModelError`` for a delta of another base, or of a weight that the base does not have or stores otherwise; ``SettingError`` for an ``out``
    that must not be written.
    """
    if not deltas:
        raise SettingError("apply: at least one delta must be named, none is.")
    directory, out = locate(base), Path(out)
    for aside in (aside for delta in deltas for aside in delta.asides):
        raise ModelError(
            f"{aside.method}: is computed beside the weights and cannot be merged into a checkpoint. Use it as modicum.changed(model, delta)."
        )
    total = sum(deltas[1:], deltas[0]).scaled(scale)
    with writing(out, [directory], overwrite) as made:
        copied(directory, made)
        body = {"format": _FORMAT, "version": _VERSION, "base": str(base), "scale": scale, "notes": list(total.notes)}
        record = _written(directory, made, total, reversible)
        write_json(
            made / _RECORD, {**body, **record, "files": {path.name: sha256(path) for path in sorted(directory.glob("*.safetensors"))}}
        )
    return Applied(out, tuple(record["changed"]), record["displaced_bytes"], tuple(dict.fromkeys(total.notes)))


def revert(directory: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write the base of what ``apply`` wrote, with the very bytes that it had.

    Raises ``ModelError`` where nothing was kept, or files changed since.
    """
    directory, out = Path(directory), Path(out)
    record = read_record(directory)
    if not record["displaced_bytes"] and record["changed"]:
        raise ModelError(f"{directory}: does not hold what was displaced. Take the base itself: {quoted(record['base'])}.")
    with writing(out, [directory], overwrite) as made:
        copied(directory, made, (_RECORD, _DISPLACED))
        if record["changed"]:
            with Shards(directory) as shards:
                for key, value in displaced(directory, shards, record):
                    patch(made / shards.file_of(key).name, shards.entry(key), value)
        for name, said in record.get("files", {}).items():
            if not (made / name).is_file() or sha256(made / name) != said:
                raise ModelError(
                    f"{directory}: must hold the base as it was, {quoted(name)} differs. Take the base itself: {quoted(record['base'])}."
                )
    return out


def displaced(directory: Path, shards: Shards, record: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of the base that were displaced, by their names on disk, one at a time. Raises ``ModelError`` where what was kept is not whole."""
    with (directory / _DISPLACED).open("rb") as kept:
        for key, size in record["changed"].items():
            bits = _inflated(kept.read(int(size)), shards.entry(key), key)
            yield key, _xor(shards.read(key), bits)


def base_weights(model: Any) -> Callable[[str], torch.Tensor]:
    """Matrices of a model by unit name. Raises ``ModelError`` for a name that it does not have."""
    units = trainable(model.module)

    def weight(name: str) -> torch.Tensor:
        if name not in units:
            raise ModelError(f"{model.name}: has no weight {quoted(name)}, which the delta changes. Apply it to its own base.")
        return units[name].matrix(model.weights.read(units[name].parameter))

    return weight


def _written(directory: Path, made: Path, delta: Delta, reversible: bool) -> dict[str, Any]:
    """Patch what changes into the copied files; what the record says of it."""
    model = open_model(directory)
    weights, changed = model.weights, dict[str, int]()
    assert isinstance(weights, CheckpointWeights)
    units, by_parameter = trainable(model.module), dict[str, list[str]]()
    for name in delta.forms:
        if name not in units:
            raise ModelError(f"{model.name}: has no weight {quoted(name)}, which the delta changes. Apply it to its own base.")
        by_parameter.setdefault(units[name].parameter, []).append(name)
    with (made / _DISPLACED).open("wb") as file:
        for parameter, names in by_parameter.items():
            value = weights.read(parameter).clone()
            for name in names:
                unit = units[name]
                new = unit.stored(delta.weight(name, unit.matrix(weights.read(parameter))))
                require_finite(f"{name}, as the delta makes it", new)
                if unit.expert is None:
                    value = new.reshape(value.shape)
                else:
                    value[unit.expert] = new
            for key, tensor in laid(weights, parameter, value).items():
                entry = weights.shards.entry(key)
                old = weights.shards.read(key)
                if torch.equal(_bytes(old), _bytes(tensor)):
                    continue
                patch(made / weights.shards.file_of(key).name, entry, tensor)
                kept = zlib.compress(bytes(raw_bytes(_xor(old, tensor).reshape(-1))), 6) if reversible else b""
                changed[key] = file.write(kept)
    size = (made / _DISPLACED).stat().st_size
    if not size:
        (made / _DISPLACED).unlink()
    return {"changed": changed, "displaced_bytes": size}


def copied(source: Path, made: Path, but: Sequence[str] = ()) -> None:
    """Copy what a checkpoint's folder holds; left out is what is hidden, or links out of it."""
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.name in but or leads_outside(path, source):
            continue
        if path.is_dir():
            outside = lambda folder, names: [name for name in names if leads_outside(Path(folder) / name, source)]
            shutil.copytree(path, made / path.name, ignore=outside)
        else:
            shutil.copyfile(path, made / path.name)


def patch(path: Path, entry: Entry, tensor: torch.Tensor) -> None:
    """Write a tensor over the one that stands at an entry of a file, of the same bytes."""
    with path.open("r+b") as file:
        file.seek(entry.begin)
        file.write(raw_bytes(tensor.contiguous().reshape(-1)))


def _xor(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Bits in which two tensors differ, as bytes sorted by their place in an entry, or the reverse where the second is such bytes."""
    size, mine = one.element_size(), _bytes(one)
    if other.dtype == torch.uint8 and other.ndim == 2:
        return (mine ^ other.T.reshape(-1)).view(one.dtype).reshape(one.shape)
    return (mine ^ _bytes(other)).reshape(-1, size).T.contiguous()


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _inflated(raw: bytes, entry: Entry, key: str) -> torch.Tensor:
    size, step = entry.end - entry.begin, entry.dtype.itemsize
    try:
        stream = zlib.decompressobj()
        bits = stream.decompress(raw, size + 1)
        if len(bits) != size or not stream.eof:
            raise zlib.error("of another length")
    except zlib.error as error:
        raise ModelError(f"{_DISPLACED}: must hold what was displaced of {quoted(key)} ({error}). Take the base itself.") from None
    return torch.frombuffer(bytearray(bits), dtype=torch.uint8).reshape(step, -1)


def read_record(directory: Path) -> dict[str, Any]:
    """What was applied in a folder. Raises ``ModelError``."""
    path = directory / _RECORD
    try:
        body = read_json(path)
        if not isinstance(body, dict) or body.get("format") != _FORMAT or body.get("version") != _VERSION:
            raise ValueError("it is no record of an applied delta")
        changed, size = body["changed"], body["displaced_bytes"]
        if not isinstance(changed, dict) or not all(isinstance(each, int) and each >= 0 for each in (*changed.values(), size)):
            raise ValueError("it must count bytes")
        files = body.get("files", {})
        if not isinstance(files, dict) or any("/" in name or not isinstance(each, str) for name, each in files.items()):
            raise ValueError("it must name files and their hashes")
        if sum(changed.values()) != size or (size and (directory / _DISPLACED).stat().st_size != size):
            raise ValueError("what was displaced must have the bytes that it says")
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{path}: must say what was applied ({quoted(error)}). Take the base itself.") from None
    return body
