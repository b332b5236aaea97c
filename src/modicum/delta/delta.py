"""Delta: forms by parameter, each on the weight that it changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.core.files import read_json, write_json
from modicum.core.tensorfile import TensorFile
from modicum.core.tensorformat import raw_bytes
from modicum.core.tensorwriter import TensorWriter
from modicum.delta.beside import Beside, restored
from modicum.forms import Base, Blend, Dense, Form, LowRank, Sparse, Sum, Within, restore
from modicum.numerics.grid import Grid
from modicum.numerics.svd import truncated

_BODY, _TENSORS = "delta.json", "delta.safetensors"
_FORMAT, _VERSION = "modicum-delta", 1
_MOST = 64 << 20  # bytes of delta.json

# Entries of the largest matrix on the way to a weight: so many times the weight's own, or so many in any case. A file may claim any shape.
_WIDER, _SMALL = 4, 1 << 24

Weights = Callable[[str], torch.Tensor]
"""Gives the matrix (rows, columns) of a unit of the base by its name."""


@dataclass(frozen=True)
class Delta:
    """A change to a model: ``forms`` by the name of the unit that they change, each a tree on a ``Base`` leaf, or without one a new weight.

    ``shared`` are tensors that several forms have in common. ``base`` names the model in words; each leaf knows the hash of its own weight.
    ``asides`` are what no weight can hold, prompts and added modules: they are computed where they stand, and neither scaled nor merged.
    Scaling and adding act on what is changed, weight minus base, for forms that multiply as for those that add, and without cross terms.
    """

    forms: Mapping[str, Form]
    shared: Mapping[str, torch.Tensor] = field(default_factory=dict)
    base: str = ""
    notes: tuple[str, ...] = ()
    asides: tuple[Beside, ...] = ()

    @property
    def nbytes(self) -> int:
        """Exact bytes of what is stored; shared tensors once."""
        return sum(part.nbytes for stored in (self.forms.values(), self.shared.values(), self.asides) for part in stored)

    def without_asides(self) -> Delta:
        """What weights can hold of it."""
        return replace(self, asides=())

    def weight(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """The unit's weight (rows, columns) on ``base``, in its dtype, rounded once.

        Raises ``ModelError`` where the base has another shape, or is another than the delta was made on.
        """
        self._require_base(name, base)
        made = self.forms[name].on(Dense(base), self.shared)
        if made.shape != tuple(base.shape):
            raise ModelError(f"{name}: the delta gives a weight of shape {made.shape}, and the base has one of {tuple(base.shape)}.")
        if (largest := max(map(_entries, _nodes(made)))) > max(_WIDER * base.numel(), _SMALL):
            raise ModelError(
                f"{name}: the delta asks for a matrix of {largest:,} entries to change one of {base.numel():,}. Write the delta anew."
            )
        return made.value().to(base.dtype)

    def _require_base(self, name: str, base: torch.Tensor) -> None:
        for leaf in leaves(self.forms[name]):
            if leaf.digest and leaf.digest != digest(base):
                raise ModelError(f"{name}: the delta was made on another weight than this base has. Apply it to its own base.")

    def require_on(self, weights: Weights) -> Delta:
        """The same, where it was made on these weights. Raises ``ModelError`` for another base."""
        for name in self.forms:
            self._require_base(name, weights(name))
        return self

    def on(self, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        """Every changed weight by name, one at a time."""
        for name in self.forms:
            yield name, self.weight(name, weights(name))

    def stamped(self, weights: Weights, base: str = "") -> Delta:
        """The same whose leaves know the hash of the weight that they stand on."""
        return self._mapped(lambda name, form: form.on(_stamp(name, weights(name)), None), base=base or self.base)

    def scaled(self, factor: float) -> Delta:
        """What it changes, times ``factor``: 0 gives the base, 1 what it was. Raises ``ModelError`` where something stands beside the weights."""
        if factor == 1:
            return self
        self._require_weights("scaled")
        return self._mapped(lambda name, form: Blend((_leaf(name, form), form), (float(factor),)))

    def _require_weights(self, what: str) -> None:
        if self.asides:
            raise ModelError(f"delta: {self.asides[0].method} is computed beside the weights, and cannot be {what}. Take the rest alone.")

    __rmul__ = __mul__ = scaled

    def __add__(self, other: Delta) -> Delta:
        """What both change, added. Raises ``ModelError`` for deltas on other bases."""
        forms: dict[str, Form] = dict(self.forms)
        if clash := [key for key in self.shared.keys() & other.shared.keys() if not torch.equal(self.shared[key], other.shared[key])]:
            raise ModelError(f"delta: shared tensor {clash[0]!r} has two values. Apply one delta after the other.")
        for name, form in other.forms.items():
            if name not in forms:
                forms[name] = form
                continue
            one, two = _leaf(name, forms[name]), _leaf(name, form)
            if one.shape != two.shape or (one.digest and two.digest and one.digest != two.digest):
                raise ModelError(f"{name}: both deltas must be made on one base, were made on two. Add what belongs together.")
            forms[name] = Blend((one, *_steps(forms[name]), *_steps(form)), (*_weights(forms[name]), *_weights(form)))
        if both := {each.place for each in self.asides} & {each.place for each in other.asides}:
            raise ModelError(f"delta: both have something beside {quoted(min(both) or 'the whole model')}. Use one of them.")
        asides = (*self.asides, *other.asides)
        return Delta(forms, {**self.shared, **other.shared}, self.base or other.base, (*self.notes, *other.notes), asides)

    def ranked(self, rank: int, weights: Weights) -> Delta:
        """Each change as its nearest product of that rank; for an adapter of what was fine-tuned in full."""
        if rank < 1:
            raise SettingError(f"rank: must be at least 1, got {rank}.")
        return self._changed(weights, lambda change: LowRank(*(part.float() for part in truncated(change, min(rank, *change.shape)))))

    def sparsified(self, keep: float, weights: Weights) -> Delta:
        """The share ``keep`` of each change's entries, the largest ones."""
        if not 0 <= keep <= 1:
            raise SettingError(f"keep: must be from 0 to 1, got {keep}.")
        return self._changed(weights, lambda change: _largest(change, round(keep * change.numel())))

    def quantized(self, bits: int, weights: Weights, group: int = 0) -> Delta:
        """Each change as whole numbers of 2 to 8 ``bits`` under one scale per row, or per ``group`` of a row's entries."""
        if not (2 <= bits <= 8 and group >= 0):
            raise SettingError(f"bits: must be from 2 to 8, and a group 0 or more, got {bits} and {group}.")
        grid = Grid(bits, group, symmetric=True)
        return self._changed(weights, lambda change: grid.encode(change, *grid.fit(change, torch.float32)))

    def onto(self, weights: Weights, rows: Mapping[str, torch.Tensor], columns: Mapping[str, torch.Tensor]) -> Delta:
        """The same on whole weights, where it was learnt on a cut base: what is learnt of some rows and columns is applied to just those.

        ``rows`` and ``columns`` (bool, of the whole weight's sides) say by unit what the cut had left; a side that is not named was not
        cut. A change that is added is the same change there; one that multiplies meets the whole weight's entries. Raises ``ModelError``
        where the sides do not fit.
        """
        forms: dict[str, Form] = {}
        for name, form in self.forms.items():
            whole = weights(name)
            sides = [
                given.get(name, torch.ones(size, dtype=torch.bool))
                for given, size in zip((rows, columns), (whole.shape[0], whole.shape[1]))
            ]
            left = tuple(int(side.sum()) for side in sides)
            if left != form.shape or [len(side) for side in sides] != list(whole.shape):
                raise ModelError(
                    f"{name}: the cut must leave the {form.shape} that the delta was learnt on, of {tuple(whole.shape)}; it leaves {left}."
                )
            inside = form.on(Base((left[0], left[1]), whole.dtype, name), None)
            forms[name] = Within((_stamp(name, whole), inside), *sides)
        return Delta(forms, self.shared, self.base, (*self.notes, "learnt on a cut base"))

    def norms(self, weights: Weights) -> dict[str, tuple[float, float]]:
        """By unit the Euclidean norm of its change, and that relative to the weight's."""
        found = {}
        for name, made in self.on(weights):
            base = weights(name).double()
            size = float((made.double() - base).norm())
            found[name] = (size, size / max(float(base.norm()), 1e-300))
        return found

    def save(self, directory: str | Path) -> None:
        """Write ``delta.json`` and ``delta.safetensors`` into a folder, which is made. Raises ``ModelError`` where that fails."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        parts = {f"{name}/{part}": tensor for name, form in self.forms.items() for part, tensor in form.tensors().items()}
        parts |= {f"shared/{name}": tensor for name, tensor in self.shared.items()}
        parts |= {f"aside {at}/{name}": tensor for at, each in enumerate(self.asides) for name, tensor in each.tensors.items()}
        with TensorWriter(folder / _TENSORS, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in parts.items()}) as writer:
            for name, tensor in parts.items():
                writer.write(name, tensor)
        forms = {name: form.describe() for name, form in self.forms.items()}
        body = {"format": _FORMAT, "version": _VERSION, "base": self.base, "shared": sorted(self.shared), "notes": list(self.notes)}
        write_json(folder / _BODY, {**body, "forms": forms, "asides": [each.describe() for each in self.asides]})

    @classmethod
    def load(cls, directory: str | Path) -> Delta:
        """Read what ``save`` wrote. Raises ``ModelError``: every tensor must belong to a form, and every form have its tensors."""
        folder = Path(directory)
        body = _body(folder / _BODY)
        if not (folder / _TENSORS).is_file():
            raise ModelError(f"{folder}: must hold {_TENSORS}, does not. Copy it there.")
        with TensorFile(folder / _TENSORS) as file:
            waiting = set(file.entries)
            shared = {str(name): file.read(f"shared/{name}") for name in body["shared"]}
            asides = []
            for at, said in enumerate(body.get("asides", [])):
                asides.append(restored(said, {str(name): file.read(f"aside {at}/{name}") for name in said["tensors"]}))
                waiting -= {f"aside {at}/{name}" for name in said["tensors"]}
            waiting -= {f"shared/{name}" for name in shared}
            forms = {}
            for name, described in body["forms"].items():
                mine = {entry: file.read(entry) for entry in waiting if entry.rpartition("/")[0] == name}
                form = forms[name] = restore(described, {entry.rpartition("/")[2]: value for entry, value in mine.items()}, known=True)
                used = {f"{name}/{part}" for part in form.tensors()}
                if used != mine.keys() or list(form.shape) != list(described["shape"]):
                    odd = sorted(used ^ mine.keys()) or [name]
                    raise ModelError(f"{folder}: tensors and forms must belong together, {quoted(odd[0])} does not. Write the delta anew.")
                waiting -= used
        if waiting:
            raise ModelError(f"{folder}: every tensor must belong to a form, {quoted(min(waiting))} does not. Write the delta anew.")
        return cls(forms, shared, str(body["base"]), tuple(map(str, body["notes"])), tuple(asides))

    def _mapped(self, change: Callable[[str, Form], Form], **settings: Any) -> Delta:
        forms = {name: change(name, form) for name, form in self.forms.items()}
        return Delta(forms, self.shared, settings.get("base", self.base), self.notes, self.asides)

    def _changed(self, weights: Weights, make: Callable[[torch.Tensor], Form]) -> Delta:
        forms = {}
        for name, made in self.on(weights):
            base = weights(name)
            forms[name] = Sum((_leaf(name, self.forms[name]), make(made.float() - base.float())))
        return Delta(forms, {}, self.base, self.notes)


def is_delta(path: str | Path) -> bool:
    """Whether a folder holds one."""
    return (Path(path) / _BODY).is_file()


def digest(weight: torch.Tensor) -> str:
    """SHA-256 of a weight's dtype, shape and bytes."""
    found = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    found.update(raw_bytes(weight.detach().cpu().contiguous().clone().reshape(-1)))
    return found.hexdigest()


def leaves(form: Form) -> Iterator[Base]:
    """Leaves of a form that stand for the whole base."""
    if isinstance(form, Base):
        yield form
    inner = form.parts[:1] if isinstance(form, Within) else getattr(form, "parts", (form.inner,) if hasattr(form, "inner") else ())
    for part in inner:
        yield from leaves(part)


def _nodes(form: Form) -> Iterator[Form]:
    """A form and all that it is made of."""
    yield form
    for part in getattr(form, "parts", (form.inner,) if hasattr(form, "inner") else ()):
        yield from _nodes(part)


def _entries(form: Form) -> int:
    return form.shape[0] * form.shape[1]


def _stamp(name: str, weight: torch.Tensor) -> Base:
    return Base((weight.shape[0], weight.shape[1]), weight.dtype, name, digest(weight))


def _leaf(name: str, form: Form) -> Base:
    return next(leaves(form), None) or Base(form.shape, form.dtype, name)


def _steps(form: Form) -> tuple[Form, ...]:
    return form.parts[1:] if isinstance(form, Blend) else (form,)


def _weights(form: Form) -> tuple[float, ...]:
    return form.weights if isinstance(form, Blend) else (1.0,)


def _largest(change: torch.Tensor, count: int) -> Form:
    flat = change.reshape(-1)
    places = flat.abs().topk(count).indices.sort().values
    return Sparse(flat[places].clone(), (change.shape[0], change.shape[1]), places.to(torch.int32) if flat.numel() < 2**31 else places)


def _body(path: Path) -> dict[str, Any]:
    """What ``delta.json`` says. Raises ``ModelError``."""
    try:
        body = read_json(path, _MOST)
        if not isinstance(body, dict) or body.get("format") != _FORMAT or not isinstance(body.get("forms"), dict):
            raise ValueError("it is no delta of modicum")
        if body.get("version") != _VERSION:
            raise ValueError(f"its version is {json.dumps(body.get('version'))}, and {_VERSION} is read here")
        if not (isinstance(body.get("shared"), list) and isinstance(body.get("notes"), list)) or "base" not in body:
            raise ValueError("it lacks what it stands on")
        if not _are_asides(body.get("asides", [])):
            raise ValueError("what it says of asides is incomplete")
        if not all(isinstance(described, dict) and isinstance(described.get("shape"), list) for described in body["forms"].values()):
            raise ValueError("a form has no shape")
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: must say what a delta is made of ({quoted(error)}). Write the delta anew.") from None
    return body


def _are_asides(said: Any) -> bool:
    words = ("place", "method", "beneath", "digest")
    return isinstance(said, list) and all(
        isinstance(each, dict) and isinstance(each.get("tensors"), list) and all(isinstance(each.get(word), str) for word in words)
        for each in said
    )
