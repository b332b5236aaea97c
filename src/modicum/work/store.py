"""What a run keeps on disk so that it can be interrupted after any block: forms made, block outputs the chain still needs, harms."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from modicum.core.files import write_json
from modicum.core.method import Change
from modicum.core.slopes import Slopes
from modicum.core.tensorfile import TensorFile
from modicum.core.tensorwriter import TensorWriter
from modicum.forms import Form, restore
from modicum.sweep import Sensitivity
from modicum.sweep.ranks import LONE, Ranks

# Before the module's name, where a file holds biases beside forms.
_BIAS = "bias of "


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    with TensorWriter(path, {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def _parts(forms: Mapping[str, Form]) -> dict[str, torch.Tensor]:
    return {f"{unit}:{part}": tensor for unit, form in forms.items() for part, tensor in form.tensors().items()}


def _described(forms: Mapping[str, Form]) -> str:
    return json.dumps({unit: form.describe() for unit, form in forms.items()})


def _restored(file: TensorFile, parts: Iterable[str], described: Mapping[str, Any], *, known: bool = False) -> Form:
    return restore(described, {part.rpartition(":")[2]: file.read(part) for part in parts}, known=known)


def _parts_of(file: TensorFile) -> dict[str, list[str]]:
    """Names of a file's tensors by the unit whose form they are parts of."""
    found: dict[str, list[str]] = {}
    for entry in file.entries:
        found.setdefault(entry.rpartition(":")[0], []).append(entry)
    return found


def save_sensitivities(path: Path, found: Mapping[str, Sensitivity]) -> None:
    """Write what a reverse sweep found."""
    tensors = {f"{name}:gradient": s.gradient.contiguous() for name, s in found.items()}
    tensors |= {f"{name}:square": s.square.contiguous() for name, s in found.items() if s.square is not None}
    tensors |= {f"{name}:covariance": s.covariance.contiguous() for name, s in found.items() if s.covariance is not None}
    tensors |= {f"{name}:table": s.table.contiguous() for name, s in found.items() if s.table is not None}
    tensors |= {f"{name}:weight": s.weight.contiguous() for name, s in found.items() if s.weight is not None}
    for key in ("trace", "hessian"):
        given = {name: value for name, s in found.items() if (value := getattr(s, key)) is not None}
        tensors |= {f"{name}:{key}": torch.tensor([value], dtype=torch.float64) for name, value in given.items()}
    _write(path, tensors)


def load_sensitivities(path: Path) -> dict[str, Sensitivity]:
    """Inverse of ``save_sensitivities``."""
    with TensorFile(path) as file:
        names = [name.removesuffix(":gradient") for name in file.entries if name.endswith(":gradient")]
        part = lambda name, key: file.read(f"{name}:{key}") if f"{name}:{key}" in file.entries else None
        number = lambda name, key: None if (value := part(name, key)) is None else float(value)
        return {
            name: Sensitivity(
                file.read(f"{name}:gradient"),
                part(name, "square"),
                part(name, "covariance"),
                number(name, "trace"),
                number(name, "hessian"),
                part(name, "weight"),
                part(name, "table"),
            )
            for name in names
        }


def save_slopes(path: Path, found: Mapping[str, Slopes]) -> None:
    """Write gradients by weight."""
    parts = {name: {key: getattr(one, key) for key in ("total", "square", "window", "general")} for name, one in found.items()}
    tensors = {f"{name}:{key}": value for name, part in parts.items() for key, value in part.items() if value is not None}
    _write(path, tensors, {"count": str(next((one.count for one in found.values()), 0))})


def load_slopes(path: Path) -> dict[str, Slopes]:
    """Inverse of ``save_slopes``."""
    with TensorFile(path) as file:
        part = lambda name, key: file.read(f"{name}:{key}") if f"{name}:{key}" in file.entries else None
        names = [name.removesuffix(":total") for name in file.entries if name.endswith(":total")]
        count = int(file.metadata["count"])
        return {
            name: Slopes(count, file.read(f"{name}:total"), file.read(f"{name}:square"), part(name, "window"), part(name, "general"))
            for name in names
        }


def save_change(path: Path, change: Change) -> None:
    """Write what a structural step made of a model."""
    parts = _parts(change.forms) | {f"{_BIAS}{module}": bias for module, bias in change.biases.items()}
    told = {"dropped": list(change.dropped), "conflicts": sorted(change.conflicts), "events": change.events}
    _write(path, parts, {"forms": _described(change.forms), "change": json.dumps(told)})


def load_change(path: Path) -> Change:
    """Inverse of ``save_change``."""
    with TensorFile(path) as file:
        told, parts = json.loads(file.metadata["change"]), _parts_of(file)
        return Change(
            forms={name: _restored(file, parts.get(name, ()), described) for name, described in json.loads(file.metadata["forms"]).items()},
            biases={name.removeprefix(_BIAS): file.read(name) for name in file.entries if name.startswith(_BIAS)},
            dropped=tuple(told["dropped"]),
            conflicts=frozenset(told["conflicts"]),
            events=told["events"],
        )


class FormStore(Mapping[str, Form]):
    """Forms by unit name, each group in a file of its own, whose header is parsed once; reading one touches only its tensors.

    Of several ``ranks`` all begin with what all have.
    """

    def __init__(self, directory: Path, ranks: Ranks = LONE):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._home: dict[str, tuple[TensorFile, list[str], dict]] = {}
        self._known: set[str] = set()
        paths = {path.name: path for path in sorted(directory.glob("*.safetensors"))}
        kept = set.intersection(*ranks.gather("forms kept", set(paths)))
        for name, path in paths.items():
            if name in kept:
                self._register(path)
            else:
                path.unlink()

    def _register(self, path: Path) -> None:
        with TensorFile(path) as file:
            parts = _parts_of(file)
            self._home |= {name: (file, parts.get(name, []), described) for name, described in json.loads(file.metadata["forms"]).items()}

    def put(self, key: str, forms: Mapping[str, Form]) -> None:
        """Store a group of forms under a file name made from ``key``."""
        if not forms:
            return
        path = self.directory / f"{key or 'trunk'}.safetensors"
        _write(path, _parts(forms), {"forms": _described(forms)})
        self._register(path)
        self._known.update(forms)

    def __getitem__(self, name: str) -> Form:
        closed, parts, described = self._home[name]
        with closed.again() as file:
            form = _restored(file, parts, described, known=name in self._known)
        self._known.add(name)
        return form

    def __contains__(self, name: object) -> bool:
        return name in self._home

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


class ChainStore:
    """Outputs of finished blocks, so that a sweep continues where it stopped on bit-identical inputs.

    A block's outputs are kept while somebody still needs them: until the next block of the chain is done and the model holds them no
    longer, which the tensors' own lifetime tells. Blocks nobody needs answer with empty tensors of the right shape. Of several ``ranks`` each keeps
    the outputs of its own micro-batches, and all continue from the last block that all have kept.
    """

    def __init__(self, directory: Path, ranks: Ranks = LONE):
        self.directory, self.ranks = directory, ranks
        directory.mkdir(parents=True, exist_ok=True)
        self._state = directory / "chain.json"
        self.done: list[dict[str, Any]] = json.loads(self._state.read_text()) if self._state.exists() else []
        self._alive: dict[str, list[weakref.ref]] = {}
        self.storable = True
        found = ranks.gather("blocks kept", [entry["block"] for entry in self.done])
        common = sum(1 for _ in takewhile(lambda blocks: len(set(blocks)) == 1, zip(*found)))
        if surplus := self.done[common:]:
            self.done = self.done[:common]
            write_json(self._state, self.done)
            self._remove(surplus)

    def replayed(self) -> dict[str, Callable[[int], Any]]:
        """For each finished block, what gives its output for a micro-batch."""
        return {entry["block"]: partial(self._read, entry) for entry in self.done}

    def keep(self, block: str, outputs: dict[int, Any]) -> bool:
        """Store a finished block's outputs; False where they are not tensors, and the sweep cannot be continued."""
        self.storable = self.storable and self._stored(block, outputs)
        # What no rank needs once all have kept this block may go, and not before: one of them may yet have to begin with the block before.
        self.storable = all(self.ranks.gather(f"{block} kept", self.storable))
        if self.storable and (stale := self._stale()):
            gone = [dict(entry) for entry in stale]
            for entry in stale:
                entry["file"] = None
            write_json(self._state, self.done)
            self._remove(gone)
        return self.storable

    def _stored(self, block: str, outputs: dict[int, Any]) -> bool:
        flat = {index: _flatten(output) for index, output in outputs.items()}
        if any(value is None for value in flat.values()) or any(entry["block"] == block for entry in self.done):
            return False
        name = f"{len(self.done):05d}.safetensors"
        tensors = {f"{index}.{place}": t for index, (_, found) in flat.items() for place, t in enumerate(found)}  # type: ignore[misc]
        _write(self.directory / name, tensors)
        shapes = {key: [str(t.dtype)[6:], list(t.shape)] for key, t in tensors.items()}
        self.done.append({"block": block, "file": name, "shapes": shapes, "structure": {str(i): v[0] for i, v in flat.items()}})  # type: ignore[index]
        self._alive[block] = [weakref.ref(tensor) for tensor in tensors.values()]
        write_json(self._state, self.done)
        return True

    def _stale(self) -> list[dict[str, Any]]:
        """Blocks at least two back with a file, whose tensors nobody holds any more."""
        held = lambda entry: any(ref() is not None for ref in self._alive[entry["block"]]) if entry["block"] in self._alive else True
        return [entry for entry in self.done[:-2] if entry["file"] and not held(entry)]

    def _remove(self, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if entry["file"]:
                (self.directory / entry["file"]).unlink(missing_ok=True)

    def _read(self, entry: dict[str, Any], index: int) -> Any:
        keys = sorted((key for key in entry["shapes"] if key.split(".")[0] == str(index)), key=lambda key: int(key.split(".")[1]))
        if entry["file"] is None:
            tensors = [torch.zeros((), dtype=getattr(torch, entry["shapes"][key][0])).expand(entry["shapes"][key][1]) for key in keys]
        else:
            with TensorFile(self.directory / entry["file"]) as file:
                tensors = [file.read(key) for key in keys]
        if entry is self.done[-1] or entry["file"]:
            self._alive.setdefault(entry["block"], []).extend(weakref.ref(tensor) for tensor in tensors)
        return _rebuild(entry["structure"][str(index)], tensors)


def _flatten(output: Any) -> tuple[Any, list[torch.Tensor]] | None:
    if isinstance(output, torch.Tensor):
        return "tensor", [output.contiguous() if not output.is_contiguous() else output]
    if isinstance(output, tuple) and all(item is None or isinstance(item, torch.Tensor) for item in output):
        return ["none" if item is None else "tensor" for item in output], [item.contiguous() for item in output if item is not None]
    return None


def _rebuild(structure: Any, tensors: list[torch.Tensor]) -> Any:
    if structure == "tensor":
        return tensors[0]
    left = iter(tensors)
    return tuple(None if kind == "none" else next(left) for kind in structure)
