"""A delta laid over what a compressed model stores: codes and masks stay as they are, what was learnt is added, and it is taken off to the byte."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError, SettingError, listed, quoted
from modicum.core.files import read_json, sha256, write_json
from modicum.core.output import writing
from modicum.core.tensorfile import Shards, TensorFile
from modicum.core.tensorformat import raw_bytes
from modicum.core.tensorwriter import TensorWriter, layout
from modicum.delta import Delta
from modicum.delta.applying import Applied, copied
from modicum.delta.delta import leaves
from modicum.export.container import FILE, narrow_groups, read_body
from modicum.export.depth import renamed, renumbering
from modicum.fit.dense import GGUF, densify
from modicum.forms import Cut, Form, restore
from modicum.forms.activated import Activated
from modicum.models.located import locate
from modicum.models.open import open_model, read_config
from modicum.models.trainable import trainable
from modicum.models.weights import require_finite

_RECORD, _DISPLACED = "applied.json", "displaced.safetensors"
_FORMAT, _VERSION = "modicum-applied-over", 1
# What tells of a result's files, and is another afterwards.
_TOLD = ("receipt.json", "report.html", "run.yaml")
_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
_PACKED = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "weight_global_scale")


def is_compressed(directory: Path) -> bool:
    """Whether a folder holds a model whose weights are stored in forms."""
    if (directory / FILE).is_file() or (directory / GGUF).is_file():
        return True
    return (directory / _CONFIG).is_file() and getattr(read_config(directory), "quantization_config", None) is not None


@contextmanager
def dense_beneath(directory: Path) -> Iterator[Path]:
    """The folder itself, or of a compressed model one with its weights as its own loader has them, for as long as the context is open."""
    if not is_compressed(directory):
        yield directory
        return
    if (directory / GGUF).is_file():
        raise ModelError(f"{directory}: must be able to hold a change, and a GGUF file cannot. Change the model that it was made of.")
    with tempfile.TemporaryDirectory() as folder:
        densify(directory, Path(folder) / "dense")
        yield Path(folder) / "dense"


def is_over(directory: Path) -> bool:
    """Whether ``apply`` of this module wrote a folder."""
    try:
        return read_json(directory / _RECORD).get("format") == _FORMAT
    except (ValueError, AttributeError):
        return False


@dataclass
class _Rewriting:
    """What becomes of a base's files: tensors ``moved`` to another name, those that go away, new ones by file, and other files' new content."""

    moved: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    new: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)

    def replace(self, shards: Shards, old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> None:
        """Let new tensors stand for old ones, in the file of the first; a tensor that stays is moved to the name that it has there."""
        left, home = dict(new), self.new.setdefault(shards.file_of(next(iter(old))).name, {})
        for key, value in old.items():
            same = [name for name, other in left.items() if _same(value, other)]
            if same and (name := min(same, key=lambda name: (name != key, name.rpartition(".")[2] != key.rpartition(":")[2], name))):
                self.moved[key] = name
                del left[name]
            else:
                self.gone.append(key)
        home.update({name: tensor.contiguous() for name, tensor in left.items()})


def apply(
    base: str | Path, deltas: Sequence[Delta], out: str | Path, *, scale: float = 1.0, overwrite: bool = False, dequantize: bool = False,
    reversible: bool = True,
) -> Applied:  # fmt: skip
    """Write the compressed model ``base`` with deltas over it, times ``scale``.

    In our container each changed weight becomes what it was, plus the delta. A weight whose target cannot hold a sum (compressed-tensors) becomes
    a dense one, where ``dequantize`` allows it. Of a weight that is stored
    dense its new value is. ``revert`` gives back the base's bytes from the result alone.

    *Needs and cost:* the dense model in memory, twice while it is compared.

    Raises ``ModelError`` for a delta of another base, and for weights that no change can stand on; ``SettingError`` where a weight would have to be
    dequantized and nobody allowed it.
    """
    if not deltas:
        raise SettingError("apply: at least one delta must be named, none is.")
    directory, out = locate(base), Path(out)
    if aside := next((aside for delta in deltas for aside in delta.asides), None):
        raise ModelError(f"{aside.method}: is computed beside the weights and cannot be applied. Use it as modicum.changed(model, delta).")
    total = sum(deltas[1:], deltas[0]).scaled(scale)
    with writing(out, [directory], overwrite) as made, dense_beneath(directory) as dense, Shards(directory) as shards:
        copied(directory, made, (*_TOLD, *(path.name for path in shards.files)))
        model = open_model(dense)
        units = trainable(model.module)
        if strange := [name for name in total.forms if name not in units]:
            raise ModelError(f"{base}: has no weight {quoted(strange[0])}, which the delta changes. Apply it to its own base.")
        value = lambda name: total.weight(name, units[name].matrix(model.weights.read(units[name].parameter)))
        laid = _container if (directory / FILE).is_file() else _compressed
        rewriting = laid(directory, shards, total, lambda name: units[name].stored(value(name)), dequantize)
        _write(directory, made, shards, rewriting)
        _record(directory, made, shards, rewriting, reversible, {"base": str(base), "scale": scale, "notes": list(total.notes)})
        _verify(made, {name: value(name) for name in total.forms})
    kept = (out / _DISPLACED).stat().st_size if reversible else 0
    return Applied(out, tuple(sorted(total.forms)), kept, tuple(dict.fromkeys(total.notes)))


def revert(directory: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write the compressed base of what ``apply`` wrote, with the very bytes that it had. Raises ``ModelError`` where files changed since."""
    directory, out = Path(directory), Path(out)
    record = _read(directory)
    if not record["files"]:
        raise ModelError(f"{directory}: does not hold what was displaced. Take the base itself: {quoted(record['base'])}.")
    with writing(out, [directory], overwrite) as made, Shards(directory) as shards, TensorFile(directory / _DISPLACED) as kept:
        copied(directory, made, (_RECORD, _DISPLACED, *(path.name for path in shards.files)))
        for name in _kept_files(kept):
            (made / name).write_bytes(bytes(raw_bytes(kept.read(f"file {name}"))))
        for name, said in record["files"].items():
            places = _places(said["tensors"], record["moved"], shards, kept)
            wanted = {key: (source.entries[at] if source is kept else source.entry(at)) for key, (source, at) in places.items()}
            with TensorWriter(made / name, {key: (entry.dtype, entry.shape) for key, entry in wanted.items()}, said["metadata"]) as writer:
                for key, (source, at) in places.items():
                    writer.write(key, source.read(at))
            if sha256(made / name) != said["sha256"]:
                raise ModelError(
                    f"{directory}: must hold the base as it was, {quoted(name)} differs. Take the base itself: {record['base']}."
                )
    return out


def displaced(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of the base, by their names in its files, one at a time. Raises ``ModelError`` where what was kept is not whole."""
    record = _read(directory)
    with Shards(directory) as shards, TensorFile(directory / _DISPLACED) as kept:
        list(_kept_files(kept))
        for said in record["files"].values():
            for key, (source, at) in _places(said["tensors"], record["moved"], shards, kept).items():
                yield key, source.read(at)


def _kept_files(kept: TensorFile) -> Iterator[str]:
    """Names of files that are kept whole, which stood in the base's folder."""
    for name in (name.removeprefix("file ") for name in kept.entries if name.startswith("file ")):
        if name not in (*_TOLD, _CONFIG, _INDEX, FILE) or kept.entries[f"file {name}"].dtype != torch.uint8:
            raise ModelError(f"{kept.path}: must keep files of the base, keeps {quoted(name)}. Take the base itself.")
        yield name


def _places(tensors: Sequence[str], moved: Mapping[str, str], shards: Shards, kept: TensorFile) -> dict[str, tuple[Any, str]]:
    """Where each of the base's tensors is."""
    return {key: (kept, f"tensor {key}") if f"tensor {key}" in kept.entries else (shards, moved.get(key, key)) for key in tensors}


def _container(directory: Path, shards: Shards, total: Delta, value: Any, dequantize: bool) -> _Rewriting:
    """Each unit's form with the delta on it; what is stored whole is so again."""
    body, found = read_body(directory), _Rewriting()
    rename = renumbering(frozenset(body["dropped"]))
    known = {renamed(name, rename): name for name in (*body["units"], *(name for name in shards.names() if ":" not in name))}
    narrow = {unit for group in narrow_groups(body, directory) for unit in group.units}
    for name in total.forms:
        here = known.get(name)
        if here is None or here in narrow:
            raise ModelError(
                f"{directory}: {quoted(name)} must be a weight that a change can stand on, is cut or tied. Change the original."
            )
        if here not in body["units"]:
            found.replace(shards, {here: shards.read(here)}, {here: value(name)})
            continue
        old = {key: shards.read(key) for key in shards.names() if key.rpartition(":")[0] == here}
        form = restore(body["units"][here]["form"], {key.rpartition(":")[2]: part for key, part in old.items()})
        changed = _over(total, name, form)
        body["units"][here]["form"] = changed.describe()
        found.replace(shards, old, {f"{here}:{part}": tensor for part, tensor in changed.tensors().items()})
    found.bodies[FILE] = (json.dumps(body, indent=1) + "\n").encode()
    return found


def _over(total: Delta, name: str, form: Form) -> Form:
    """A form with what changes it. Raises ``ModelError`` where the form cannot be added to."""
    if isinstance(form, Activated):
        return Activated(_over(total, name, form.inner), form.inputs)
    if isinstance(form, Cut) or not any(leaves(total.forms[name])):
        raise ModelError(f"{name}: must be a weight that a change can stand on, and a change of that weight. Change the original.")
    return total.forms[name].on(form, total.shared)


def _compressed(directory: Path, shards: Shards, total: Delta, value: Any, dequantize: bool) -> _Rewriting:
    """Weights of compressed-tensors that change are dense, and the config leaves them out."""
    found, config = _Rewriting(), json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    packed = [name for name in total.forms if f"{name.removesuffix('weight')}weight_packed" in shards or f"{name}_scale" in shards]
    if packed and not dequantize:
        raise SettingError(
            f"{directory}: holds {listed(sorted(packed))} in codes, to which nothing can be added there. Pass --dequantize to store them dense."
        )
    for name in total.forms:
        old = [name] if name in shards else []
        old += [key for part in _PACKED if (key := f"{name.removesuffix('weight')}{part}") in shards and name in packed]
        if not old:
            raise ModelError(f"{directory}: {quoted(name)} must be stored under its own name, is not. Change the original.")
        found.replace(shards, {key: shards.read(key) for key in old}, {name: value(name)})
    ignored = config.get("quantization_config", {}).setdefault("ignore", [])
    ignored += sorted({name.removesuffix(".weight") for name in packed} - set(ignored))
    found.bodies[_CONFIG] = (json.dumps(config, indent=2) + "\n").encode()
    return found


def _write(directory: Path, made: Path, shards: Shards, rewriting: _Rewriting) -> None:
    gone, homes = set(rewriting.gone), dict[str, str]()
    for path in shards.files:
        mine = {key: rewriting.moved.get(key, key) for key in shards.names() if shards.file_of(key) == path and key not in gone}
        new = rewriting.new.get(path.name, {})
        for name, tensor in new.items():
            if tensor.is_floating_point():
                require_finite(f"{name}, as the delta makes it", tensor)
        wanted = {name: (shards.entry(key).dtype, shards.entry(key).shape) for key, name in mine.items()}
        wanted |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in new.items()}
        with TensorWriter(made / path.name, wanted, _metadata(path)) as writer:
            for key, name in mine.items():
                writer.write(name, shards.read(key))
            for name, tensor in new.items():
                writer.write(name, tensor)
        homes |= dict.fromkeys(wanted, path.name)
    if (directory / _INDEX).is_file():
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8")) | {"weight_map": homes}
        rewriting.bodies[_INDEX] = (json.dumps(index, indent=2) + "\n").encode()
    for name, body in rewriting.bodies.items():
        (made / name).write_bytes(body)


def _record(directory: Path, made: Path, shards: Shards, rewriting: _Rewriting, reversible: bool, said: dict[str, Any]) -> None:
    """Keep beside the result what its files no longer hold, and what the base's files were. Raises ``ModelError`` where they cannot be had again."""
    files = dict[str, Any]()
    for path in shards.files if reversible else ():
        mine = [key for key in shards.names() if shards.file_of(key) == path]
        head, _ = layout({key: (shards.entry(key).dtype, shards.entry(key).shape) for key in mine}, _metadata(path), str(path))
        with path.open("rb") as file:
            if file.read(len(head)) != head:
                raise ModelError(f"{path}: must be laid out as safetensors are written, is not. Fit the model anew.")
        files[path.name] = {"tensors": mine, "metadata": _metadata(path), "sha256": sha256(path)}
    body = {"format": _FORMAT, "version": _VERSION, **said, "moved": rewriting.moved, "files": files}
    write_json(made / _RECORD, body)
    if not reversible:
        return
    kept = {f"tensor {key}": shards.read(key) for key in rewriting.gone}
    for name in (*rewriting.bodies, *_TOLD):
        if (directory / name).is_file():
            kept[f"file {name}"] = torch.frombuffer(bytearray((directory / name).read_bytes()), dtype=torch.uint8)
    with TensorWriter(made / _DISPLACED, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in kept.items()}) as writer:
        for name, tensor in kept.items():
            writer.write(name, tensor)


def _verify(made: Path, wanted: Mapping[str, torch.Tensor]) -> None:
    """Read what was written by its own loader. Raises ``ModelError`` where a weight is not what the delta makes of it."""
    with dense_beneath(made) as dense:
        model = open_model(dense)
        units = trainable(model.module)
        read = lambda name: units[name].matrix(model.weights.read(units[name].parameter))
        if wrong := [name for name, value in wanted.items() if not torch.equal(read(name), value)]:
            raise ModelError(f"{made.name}: must be read as the delta makes it, {listed(sorted(wrong))} differ. Report this.")


def _read(directory: Path) -> dict[str, Any]:
    path = directory / _RECORD
    try:
        body: dict[str, Any] = read_json(path)
        if not isinstance(body, dict) or body.get("format") != _FORMAT or body.get("version") != _VERSION:
            raise ValueError("it is no record of a delta over a compressed model")
        moved, files = body["moved"], body["files"]
        texts = lambda some: all(isinstance(each, str) for each in some)
        if not (isinstance(moved, dict) and texts(moved.values()) and isinstance(files, dict) and isinstance(body["base"], str)):
            raise ValueError("it must say what moved, and the files")
        for name, said in files.items():
            if "/" in name or name.startswith(".") or not name.endswith(".safetensors"):
                raise ValueError(f"{name!r} is no file of weights")
            if not (isinstance(said["tensors"], list) and texts(said["tensors"]) and isinstance(said["sha256"], str)):
                raise ValueError("it must name the tensors of each file")
            if not (said["metadata"] is None or (isinstance(said["metadata"], dict) and texts(said["metadata"].values()))):
                raise ValueError("metadata must be texts")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: must say what was applied ({quoted(error)}). Take the base itself.") from None
    return body


def _metadata(path: Path) -> dict[str, str] | None:
    with TensorFile(path) as file:
        return file.metadata or None


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype and one.shape == other.shape and bytes(raw_bytes(one.contiguous())) == bytes(raw_bytes(other.contiguous()))
    )
