"""What every method is: a frozen value passed to one verb, whose class carries its facts."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from modicum.core import settings
from modicum.core.errors import SettingError, near
from modicum.core.unit import Site, Stats

if TYPE_CHECKING:
    import torch

    from modicum.forms import Form

FAMILIES = ("quantize", "prune", "factor", "repair", "drop", "adapt", "restrict", "merge")
# Families whose methods are trained: parametrizations, which no calibration makes.
TRAINED = ("adapt", "restrict")
# Families that stand in no option of a budget: what is trained, and what is made of several models.
APART = (*TRAINED, "merge")


class Need(Enum):
    """What a method must see; the sweep collects the union of what all chosen methods declare."""

    NORMS = "norms"
    MEANS = "means"
    VARIANCES = "variances"
    COVARIANCE = "covariance"
    DRIFT = "drift of inputs"
    FELT = "output gradients of rows together"
    SLOPES = "gradients by weight"
    WINDOW = "gradients of single sequences"
    GENERAL = "gradients on text of the model's own"
    INPUTS = "inputs"
    ROUTED = "routed inputs"
    BLOCK_OUTPUTS = "block outputs"


@dataclass(frozen=True)
class Paper:
    """Source of a method."""

    title: str
    arxiv: str
    year: int
    authors: str = ""

    def bibtex(self, key: str) -> str:
        """BibTeX entry under ``key``."""
        url = f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""
        rows = [f"  title = {{{self.title}}},", f"  author = {{{self.authors}}},", f"  year = {{{self.year}}},"]
        if self.arxiv:
            rows += [f"  eprint = {{{self.arxiv}}},", "  archivePrefix = {arXiv},", f"  url = {{{url}}},"]
        return "\n".join([f"@misc{{{key.replace('/', '-')},", *rows, "}"])

    def plain(self) -> str:
        """The paper in one line for people."""
        where = f", arXiv {self.arxiv}" if self.arxiv else ""
        return f"{self.authors.replace(' and ', '; ') or 'unknown'}: {self.title}. {self.year}{where}."


@dataclass
class Change:
    """What applying an option gives: forms by unit name, biases by module name, blocks dropped, and what it conflicts with."""

    forms: dict[str, Form] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    conflicts: frozenset[str] = frozenset()
    events: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Method:
    """Root of all methods: frozen, keyword-only settings, no state; ``apply`` never changes what it is given."""

    paper: ClassVar[Paper | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()
    # Whether blocks of a covariance serve where the whole is needed but does not fit.
    blockwise: ClassVar[bool] = False
    known_gaps: ClassVar[dict[str, str]] = {}
    treats: ClassVar[frozenset[str]] = frozenset({"unit", "fused", "tied", "experts"})
    # Whether what is made of a row depends on how much the output feels it, where gradients were taken.
    feels: ClassVar[bool] = False
    # Whether it is for tables alone.
    tables: ClassVar[bool] = False
    # What its harm is weighed by beyond what it needs itself.
    weighed_by: ClassVar[frozenset[Need]] = frozenset()
    # Bytes for each weight that making a form holds beside what every solve of columns does.
    held: ClassVar[int] = 0
    # Whether it wraps whatever form the step before it made, without a look at its values.
    wraps: ClassVar[bool] = False
    # Settings at which the method stands on the menu of a budget; none where it does not.
    menu: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    # The target on whose menu alone it stands by default; empty where it stands on that of each that can hold it.
    runtime: ClassVar[str] = ""

    def __post_init__(self) -> None:
        settings.check(self)

    @classmethod
    def key(cls) -> str:
        """``family/name``, read off the module's path; for a class of a script the family's folder and the class name in snake case."""
        if cls.__module__.startswith("modicum."):
            return "/".join(cls.__module__.split(".")[-2:])
        return f"{cls.family()}/{re.sub(r'(?<!^)(?=[A-Z])', '_', cls.__name__).lower()}"

    @classmethod
    def family(cls) -> str:
        """Folder of the family: that of the first class in the line of inheritance that stands in one. Raises ``SettingError``."""
        for base in cls.__mro__:
            parts = base.__module__.split(".")
            if parts[0] == "modicum" and parts[1] in FAMILIES:
                return parts[1]
        raise SettingError(f"{cls.__name__}: must inherit from a class of a family ({', '.join(FAMILIES)}).")

    @classmethod
    def data_free(cls) -> bool:
        """Whether the method needs no calibration data."""
        return not cls.needs

    def wanted(self) -> frozenset[Need]:
        """What these very settings need of ``needs``."""
        return self.needs

    def __str__(self) -> str:
        return f"{self.key().split('/')[1]} {settings.write(self)}".strip()

    @property
    def closes(self) -> bool:
        """Whether a method that is trained may stand last in an option, on what the steps before it made."""
        return False

    @property
    def by_rows(self) -> bool:
        """Whether what these settings make of some rows of a weight is what they make of them in the whole, where there is no data."""
        return False

    def saves(self, site: Site) -> bool:
        """Whether the method can make anything of ``site`` smaller: where it never can it does not stand on the menu of a budget."""
        return True

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Treat every unit of ``site``; ``stats`` and ``current`` forms by unit name."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Trainable(Method):
    """A method that is a part of training: what is trained, what of it when, beside what, or by which gradient."""

    # Learning rate at its highest where nothing else is said: found by ``bench/rates.py``.
    rate: ClassVar[float] = 1e-3

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Trained steps make nothing without training. Raises ``SettingError``."""
        require_untrained(self.key())
        return Change()


@cache
def registry() -> dict[str, type[Method]]:
    """Every method by key, found by walking the family folders: a new file is enough."""
    found: dict[str, type[Method]] = {}
    for family in FAMILIES:
        package = importlib.import_module(f"modicum.{family}")
        for info in pkgutil.iter_modules(package.__path__):
            if info.name.startswith("_"):
                continue
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            found.update({cls.key(): cls for cls in _classes(module)})
    return found


def _classes(module) -> Iterator[type[Method]]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
            yield value


def register(cls: type[Method]) -> type[Method]:
    """Add a method that lives outside the package (a script's own): afterwards its name works in every option.

    Raises ``SettingError`` for a class of no family, or a key that another class has.
    """
    other = registry().setdefault(cls.key(), cls)
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise SettingError(f"{cls.key()}: is taken by {other.__module__}.{other.__qualname__}. Choose another class name.")
    registry()[cls.key()] = cls
    return cls


def require_untrained(key: str) -> None:
    """Raise ``SettingError`` for a method that is trained, where nothing trains, and for one that merges, where there is one model."""
    if key.split("/")[0] == "merge":
        raise SettingError(f"{key.split('/')[1]}: makes one model of several, and there is one here. Use modicum merge.")
    if key.split("/")[0] in TRAINED:
        raise SettingError(
            f"{key.split('/')[1]}: is trained, and nothing trains here. Use modicum adapt, or modicum.trained in a loop of your own."
        )


def meant(name: str, methods: Mapping[str, type], *, trained: bool, closing: bool = False) -> type:
    """The method of an option's step, by ``family/name`` or name; one that is ``trained`` only where it may be. Raises ``SettingError``.

    It may where the step is ``closing``, the last of several; whether it can stand there it says itself (``Method.closes``).
    """
    if trained:
        return named(name, methods)
    known = made(methods) | ({key: cls for key, cls in methods.items() if key.split("/")[0] in TRAINED} if closing else {})
    for key in methods:
        if name in (key, key.split("/")[1]) and key not in known:
            require_untrained(key)
    return named(name, known)


def made(methods: Mapping[str, type]) -> dict[str, type]:
    """Those that calibration makes."""
    return {key: cls for key, cls in methods.items() if key.split("/")[0] not in APART}


def find(key: str) -> type[Method]:
    """Method class by ``family/name`` or by name alone. Raises ``SettingError`` with the near names."""
    return named(key, registry())


def named(key: str, methods: Mapping[str, type]) -> type:
    """What stands in ``methods`` under ``family/name``, or under a name that only one of them has. Raises ``SettingError``."""
    if key in methods:
        return methods[key]
    matches = [name for name in methods if name.split("/")[1] == key]
    if len(matches) == 1:
        return methods[matches[0]]
    if matches:
        raise SettingError(f"method {key!r}: must name one method, is {' and '.join(matches)}. Write the family too.")
    raise SettingError(f"method {key!r}: is not known. {near(key, [*methods, *(name.split('/')[1] for name in methods)])}")
