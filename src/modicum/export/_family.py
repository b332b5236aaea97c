"""What every target does: say which sites it binds, which options it holds, what they cost, and write them shard by shard."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from modicum.core.errors import ModelError
from modicum.core.method import Change
from modicum.core.option import Option
from modicum.core.tensorfile import Shards
from modicum.core.tensorwriter import TensorWriter, file_bytes
from modicum.core.unit import Site, Unit
from modicum.data.splits import Batch
from modicum.forms import Form
from modicum.models.model import Model
from modicum.sweep import Script

if TYPE_CHECKING:
    from modicum.export.probe import Probe

Entries = dict[str, tuple[torch.dtype, tuple[int, ...]]]
METADATA = {"format": "pt"}
# As Transformers shards; one file where all fits.
SHARD_BYTES = 5_000_000_000
# Digits of file offsets assumed in a header: ten gigabytes.
DIGITS = 10


@dataclass
class Layout:
    """Every tensor of the output, in order, and how to make each group of them when its turn comes."""

    entries: Entries = field(default_factory=dict)
    makers: list[tuple[tuple[str, ...], Callable[[], Mapping[str, torch.Tensor]]]] = field(default_factory=list)

    def add(self, entries: Entries, make: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Append tensors that ``make`` gives together."""
        self.entries.update(entries)
        self.makers.append((tuple(entries), make))

    def shards(self, limit: int = SHARD_BYTES) -> list[Entries]:
        """Entries split in order so that no shard's tensors exceed ``limit`` bytes."""
        shards: list[Entries] = [{}]
        room = limit
        for name, (dtype, shape) in self.entries.items():
            size = tensor_bytes(dtype, shape)
            if size > room and shards[-1]:
                shards.append({})
                room = limit
            shards[-1][name] = (dtype, shape)
            room -= size
        return shards

    def nbytes(self, limit: int = SHARD_BYTES) -> int:
        """Exact bytes of the weight files, headers and index included."""
        shards = self.shards(limit)
        return sum(file_bytes(shard, METADATA) for shard in shards) + (len(_index(shards)) if len(shards) > 1 else 0)

    def write(self, directory: Path, limit: int = SHARD_BYTES) -> list[Path]:
        """Write the shards, tensors as they are made, and the index where there are several."""
        shards = self.shards(limit)
        paths = [directory / name for name in _names(len(shards))]
        writers = [TensorWriter(path, shard, METADATA) for path, shard in zip(paths, shards)]
        home = {name: writer for writer, shard in zip(writers, shards) for name in shard}
        for names, make in self.makers:
            made = make()
            for name in names:
                home[name].write(name, made[name])
        for writer in writers:
            writer.close()
        if len(shards) > 1:
            (directory / "model.safetensors.index.json").write_bytes(_index(shards))
        return paths

    def compare(self, directory: Path) -> int:
        """Read all tensors back and compare them with what they are made of; their number. Raises ``ModelError`` where one differs."""
        with Shards(directory) as shards:
            for names, make in self.makers:
                made = make()
                for name in names:
                    wanted, found = made[name], shards.read(name)
                    if wanted.dtype != found.dtype or not torch.equal(_raw(wanted), _raw(found)):
                        raise ModelError(f"{directory}: {name} must be read back as it was written, differs. Check the disk.")
        return len(self.entries)


class Target(ABC):
    """A format some runtime loads."""

    name: ClassVar[str]
    # Whether its loader is somebody else's, which a small model tells about before anything is measured (`export.probe`).
    probes: ClassVar[bool] = False
    # Whether every one of its loaders reads any mixture of forms right.
    mixes: ClassVar[bool] = True
    # Whether its loaders round keys and values that are kept for later tokens (`measure.cache`).
    caches: ClassVar[bool] = False
    # Whether a model is measured for it only where it is named.
    asked: ClassVar[bool] = False

    def __init__(self, model: Model, script: Script):
        self.model, self.script = model, script
        # "integer", "float8" or "cut" and a kind of weight that its loader does not bring back so, or "drop" for fewer blocks, and why.
        self.off: dict[str, str] = {}
        self.probe: Probe | None = None
        # Bytes that processes beside this one may take, as far as that is limited.
        self.room: int | None = None

    def over(self, model: Model) -> Target:
        """The same for a model that differs in values alone."""
        other = copy.copy(self)
        other.model = model
        return other

    @abstractmethod
    def sites(self) -> list[Site]:
        """What one choice binds here, in call order; units that cannot be stored otherwise than dense are in none."""

    @abstractmethod
    def adapt(self, site: Site, option: Option) -> Option | None:
        """The option as this target can hold it on ``site``, or None."""

    def option_for(self, site: Site, option: Option) -> Option | None:
        """The option for what was seen of a site's inputs and where pruned entries stay zero, or None; without what treats inputs where none are."""
        if option.steps and option.steps[-1].wraps and not takes_rounded(site):
            option = Option(option.steps[:-1])
        if any(unit.pruned for unit in site.units) and not option.keeps_zeros:
            return None
        if not site.data_free:
            return option if _suits(site, option) else None
        felt = self.script.feels and all(unit.kind == "embedding" for unit in site.units)
        return option.looked_up() if felt else option.without_data()

    def against(self, site: Site, option: Option) -> str:
        """Why an option cannot be held on ``site``, or an empty string where nothing is to be said."""
        if option.steps and any(unit.pruned for unit in site.units) and not option.keeps_zeros:
            return "pruned entries must stay zero, and it does not keep them"
        return "" if _suits(site, option) else "it is for tables, whose entries are looked up, and these multiply inputs"

    @abstractmethod
    def unit_entries(self, unit: Unit, form: Form) -> Entries:
        """What is stored for a unit in this form."""

    @abstractmethod
    def layout(self, forms: Mapping[str, Form], biases: Mapping[str, torch.Tensor], dropped: frozenset[str]) -> Layout:
        """Everything that is written, for forms by unit name."""

    @abstractmethod
    def finish(self, directory: Path, forms: Mapping[str, Form], dropped: frozenset[str]) -> None:
        """Write what stands beside the weights."""

    def describe(self, directory: Path, forms: Mapping[str, Form], dropped: frozenset[str]) -> None:
        """Of what ``finish`` writes that which a loader needs to read the weights."""
        self.finish(directory, forms, dropped)

    @abstractmethod
    def verify(self, directory: Path, forms: Mapping[str, Form], batch: Batch | None = None) -> tuple[torch.nn.Module, dict[str, Any]]:
        """Reload in the target's own loader; the module it gives, and what was checked, on ``batch`` where outputs are, with ``events``.

        Raises ``ModelError``.
        """

    def as_loaded(self, directory: Path, module: torch.nn.Module) -> torch.nn.Module:
        """The model as users load it; ``module`` is what ``verify`` gave."""
        return module

    def otherwise(self, directory: Path) -> dict[str, Callable[[], torch.nn.Module]]:
        """Other ways in which its users load a directory, by name."""
        return {}

    def wrong(self, family: str, units: Sequence[Unit]) -> bool:
        """Whether the loader does not bring back units that this family of forms has treated."""
        return any(f"{family} {unit.likeness}" in self.off for unit in units)

    def holds(self, change: Change) -> str:
        """Why a structural change cannot be stored here, or an empty string."""
        return ""

    def together(self, cuts: Mapping[str, Site]) -> dict[str, tuple[Site, ...]]:
        """Coupled cuts that can be held here, by the name of the choice that binds those that must be cut alike."""
        return {name: (site,) for name, site in cuts.items()}

    def narrows(self, members: Sequence[Site], kept: Mapping[str, Sequence[int]]) -> bool:
        """Whether cuts that go ``together`` can leave these groups of each, by name."""
        return True

    def common(self, option: Option) -> bool:
        """Whether an option belongs on this target's default menu: all its readers agree on it."""
        return True

    def mixture(self, options: Iterable[Option]) -> str:
        """Why options cannot stand in one file together, or an empty string."""
        return ""

    def scheme(self, form: Form) -> str:
        """What all that is quantized has in common where its loaders do not all read mixtures."""
        return ""

    def refusal(self, unit: Unit) -> str:
        """Why a unit stays dense here whatever the plan, from the closed set of reasons, or an empty string."""
        return ""

    def dense_value(self, first: str, forms: Mapping[str, Form]) -> torch.Tensor:
        """A parameter that is stored dense, in its storage layout: changed by a structural step, or as it was."""
        if first in forms:
            return self.model.units[first].stored(forms[first].dense())
        return self.model.weights.read(first)

    def fixed_bytes(self, inside: Collection[str], dropped: frozenset[str] = frozenset()) -> int:
        """Bytes beside what is ``inside`` the sites, headers' share included, where blocks are ``dropped``."""
        layout = self.layout({}, {}, dropped)
        rest = {name: entry for name, entry in layout.entries.items() if name not in inside}
        frame = 8 + len(json.dumps({"__metadata__": METADATA}, separators=(",", ":"))) + 8
        total = frame + sum(tensor_bytes(*entry) + header_share(name, *entry, DIGITS) for name, entry in rest.items())
        dense = sum(tensor_bytes(*entry) for entry in layout.entries.values())
        return total if dense < SHARD_BYTES else total + sum(len(name) + 64 for name in layout.entries) * 4

    def unit_bytes(self, unit: Unit, form: Form, digits: int) -> int:
        """Bytes a unit adds to the file: tensors, and their share of the header with offsets of ``digits`` digits."""
        entries = self.unit_entries(unit, form)
        return sum(tensor_bytes(*entry) + header_share(name, *entry, digits) for name, entry in entries.items())


def takes_rounded(site: Site) -> bool:
    """Whether a site's units multiply an input that can be rounded before: linear modules' that were seen to be their products."""
    return not site.data_free and all(unit.kind in ("linear", "conv1d") for unit in site.units)


def _suits(site: Site, option: Option) -> bool:
    """Whether no step that is for tables alone meets what multiplies inputs."""
    tables = bool(site.data_free) or all(unit.kind == "embedding" for unit in site.units)
    return tables or not any(step.tables for step in option.steps)


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def tensor_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of one tensor."""
    count = 1
    for size in shape:
        count *= size
    return count * dtype.itemsize


def header_share(name: str, dtype: torch.dtype, shape: tuple[int, ...], digits: int) -> int:
    """Bytes of one entry in a safetensors header whose offsets have ``digits`` digits."""
    said = ("F8_E4M3" if dtype.itemsize == 1 else "BF16", ",".join(map(str, shape)))
    return _quoted(name) + len(':{"dtype":"","shape":[],"data_offsets":[,]},') + sum(map(len, said)) + 2 * digits


@lru_cache(1 << 16)
def _quoted(name: str) -> int:
    """Bytes of a name as JSON."""
    return len(json.dumps(name))


def _names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{index + 1:05d}-of-{count:05d}.safetensors" for index in range(count)]


def _index(shards: list[Entries]) -> bytes:
    total = sum(tensor_bytes(*entry) for shard in shards for entry in shard.values())
    where = {name: file for file, shard in zip(_names(len(shards)), shards) for name in shard}
    return (json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, indent=2) + "\n").encode()
