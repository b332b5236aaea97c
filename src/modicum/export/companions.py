"""What stands beside the weights: the config in every spelling that is read, generation settings, and all other files of the source."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modicum.core.files import leads_outside, read_json
from modicum.models.model import Model
from modicum.models.quiet import hushed

_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".ot"),
    ".index.json",
)
# Keys that version 5 of Transformers reads into ``rope_parameters`` and ``dtype``, and version 4, with what builds on it, knows by these names.
_OLDER = re.compile(r"rope|rotary|^torch_dtype$")


def save_config(model: Model, config: Any, directory: Path) -> None:
    """Write a config that names the model's class, its rotary positions and dtype under their older names too."""
    config.architectures = [type(model.module).__name__]
    config.save_pretrained(directory)
    path = directory / "config.json"
    body = read_json(path)
    source = model.directory / "config.json" if model.directory is not None else None
    raw = read_json(source) if source is not None and source.is_file() else {}
    with hushed():
        body = _spelt(type(config), body, body, raw if isinstance(raw, dict) else {}, ())
    path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _spelt(cls: type, whole: dict[str, Any], part: dict[str, Any], raw: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    """The whole config with the older names that its part at ``place`` lacks; a name that changes what is read is left out."""
    for name, value in _older(part, raw).items():
        if name not in part:
            tried = _put(whole, place, name, value)
            whole = tried if _read(cls, tried) == _read(cls, whole) else whole
    for name, value in part.items():
        if isinstance(value, dict) and "model_type" in value:
            inner = raw.get(name)
            whole = _spelt(cls, whole, value, inner if isinstance(inner, dict) else {}, (*place, name))
    return whole


def _older(part: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """Older names and their values: as the source spelt them, else as the newer ones say."""
    found: dict[str, Any] = {}
    rope = part.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:
        found |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        if rope["rope_type"] != "default":
            found["rope_scaling"] = {name: value for name, value in rope.items() if name not in found}
    found |= {name: value for name, value in raw.items() if _OLDER.search(name)}
    return found | ({"torch_dtype": part["dtype"]} if "dtype" in part else {})


def _put(whole: dict[str, Any], place: tuple[str, ...], name: str, value: Any) -> dict[str, Any]:
    whole = copy.deepcopy(whole)
    part = whole
    for step in place:
        part = part[step]
    part[name] = value
    return whole


def _read(cls: type, body: dict[str, Any]) -> Any:
    """What Transformers makes of a config's text; the error where it refuses it."""
    try:
        return cls.from_dict(copy.deepcopy(body)).to_dict()  # type: ignore[attr-defined]
    except Exception as error:  # a hundred architectures' own rules
        return repr(error)


def save_generation(model: Model, directory: Path) -> None:
    """Write generation settings that the source holds in its ``config.json``, or in memory alone; a file of their own is copied as it is."""
    settings = getattr(model.module, "generation_config", None)
    if settings is None or (model.directory is not None and (model.directory / "generation_config.json").exists()):
        return
    if model.directory is not None:
        with hushed():
            settings = type(settings).from_pretrained(model.directory, config_file_name="config.json", _from_model_config=True)
    settings = copy.deepcopy(settings)
    settings._from_model_config = False
    settings.to_json_file(directory / "generation_config.json", use_diff=True)


def copy_companions(source: Path | None, directory: Path) -> None:
    """Copy what stands beside the weights: tokenizer, chat templates, generation config, processor, pooling, licence, card.

    Left out are hidden files, links that lead out of the source, and folders that hold weights of their own: another model, or the same
    one in another format. Folders that ``modules.json`` names are parts of this model and are copied whole.
    """
    if source is None:
        return
    parts = _module_folders(source)
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or leads_outside(path, source):
            continue
        if path.is_dir():
            files = list(_files(path, source, directory))
            if path.name in parts or not any(file.name.endswith(_WEIGHTS) for file in files):
                for file in files:
                    _copy(file, directory / file.relative_to(source))
        elif path.is_file() and not path.name.endswith(_WEIGHTS) and path.name != "config.json":
            _copy(path, directory / path.name)


def _module_folders(source: Path) -> set[str]:
    """Folders that sentence-transformers' list of modules names."""
    try:
        listed = read_json(source / "modules.json")
    except ValueError:
        return set()
    entries = listed if isinstance(listed, list) else []
    return {entry["path"].partition("/")[0] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("path"), str)}


def _files(folder: Path, source: Path, directory: Path) -> Iterator[Path]:
    """Regular files in a folder, at any depth, that are not hidden, lead nowhere else and are no part of what is being written."""
    if directory.resolve().is_relative_to(folder.resolve()):
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or leads_outside(path, source):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path, source, directory)
        elif path.is_file():
            yield path


def _copy(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)
