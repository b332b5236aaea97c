"""The dtype to compute in: a fact of the machine, told by what its products take.

A processor with units for bfloat16 multiplies in it five times as fast as in float32; one without is up to forty times slower in it. Float32 holds
every value of the narrower dtypes. So weights of half precision are computed with in the faster of the two, each as it is loaded; what is stored,
made and written stays as it was. Covariances are summed in float32 in any case, for sums in half precision lose what they are for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from modicum.core.errors import quoted
from modicum.models.model import Model
from modicum.models.weights import CPU
from modicum.runtime.clock import Clock, default_path, timed

_HALVES = (torch.float16, torch.bfloat16)
_NAMES = {str(dtype)[6:]: dtype for dtype in (*_HALVES, torch.float32, torch.float64)}
# Float32 takes twice the memory, and is not what users run: it must be so many times as fast.
_WORTH = 1.25
# Sides of the products that are timed, powers of two near those of the model's layers, and their rows.
_LEAST, _MOST, _TOKENS = 256, 512, 64
_SECONDS, _REPEATS = 0.01, 20
_SPELLS, _PAUSE = 3, 0.02
# What a forward and a sweep for gradients consist of: block by block forward, again for the graph, and back through the inputs alone.
_FORWARD, _GRADIENTS = Counter(linear=1), Counter(linear=2, gradient=1)

Seconds = Callable[[str, torch.dtype, int, int], float]
"""What a product takes, by its kind, dtype, rows and columns of the weight."""


@dataclass(frozen=True)
class Compute:
    """In which dtypes a run computes: forwards of weights stored in ``stored``, those of the original and of what is made of it alike, and
    gradients; and ``why``.
    """

    stored: str
    forward: str
    gradients: str
    why: str

    @classmethod
    def from_json(cls, value: Any) -> Compute | None:
        """What a run began with, or None where that does not say it."""
        names = [field.name for field in fields(cls)]
        known = isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)
        return cls(**{name: value[name] for name in names}) if known and {value[name] for name in names[:3]} <= set(_NAMES) else None

    def to_json(self) -> dict[str, str]:
        """Inverse of ``from_json``."""
        return asdict(self)

    @property
    def changed(self) -> bool:
        """Whether anything is computed in another dtype than it is stored in."""
        return {self.forward, self.gradients} != {self.stored}

    @property
    def told(self) -> str:
        """The dtypes in words."""
        alike = self.forward == self.gradients
        return self.forward if alike else f"{self.forward}, gradients in {self.gradients}"

    def event(self) -> str:
        """What a receipt says where something is computed otherwise than it is stored, or where that was to be and could not."""
        if not self.changed:
            return f"compute: in {self.stored}, in which the weights are stored: {self.why}."
        alike = " The original and the compressed model alike: divergences are between the two as they are computed here."
        return f"compute: in {self.told}, where the weights are stored in {self.stored} ({self.why}).{alike if self.forward != self.stored else ''}"

    def refused(self, error: Exception) -> Compute:
        """In the weights' own dtype, since the model raised ``error`` in another."""
        why = (
            f"its forward does not run in {self.forward}, which is faster on this processor ({type(error).__name__}: {quoted(error, 120)})"
        )
        return Compute(self.stored, self.stored, self.stored, why)

    def of(self, model: Model, *, gradients: bool = False) -> Model:
        """The model, computing forwards or gradients in their dtype."""
        return model.computing(turned(_NAMES[self.stored], _NAMES[self.gradients if gradients else self.forward]))


def turned(stored: torch.dtype, into: torch.dtype) -> dict[torch.dtype, torch.dtype]:
    """Dtypes of weights that are loaded in another: the model's own, and for float32 any of half precision."""
    return dict.fromkeys({stored, *(_HALVES if into == torch.float32 else ())} - {into}, into)


def chosen(model: Model, way: str, seconds: Seconds | None = None) -> Compute:
    """What was asked for; of ``auto`` for weights of half precision what is faster on this processor, for all others the weights' own dtype."""
    return decided(model.dtype, _shapes(model), way, seconds, model.weights.device)


def decided(
    dtype: torch.dtype, shapes: Mapping[tuple[int, int], int], way: str, seconds: Seconds | None = None, device: torch.device = CPU
) -> Compute:  # fmt: skip
    """The same of weights of ``dtype``, by how many there are in each shape (rows, columns)."""
    stored = str(dtype)[6:]
    if way != "auto":
        return Compute(stored, way, way, "as asked for")
    if dtype not in _HALVES or device.type != "cpu":
        return Compute(stored, stored, stored, "the dtype in which the weights are stored")
    shape = _typical(shapes)
    own, wide = (_times(each, shape, seconds or measured()) for each in (dtype, torch.float32))
    pick = lambda work: "float32" if _total(own, work) > _WORTH * _total(wide, work) else stored
    return Compute(stored, pick(_FORWARD), pick(_GRADIENTS), _why(own, wide, stored, shape))


def _shapes(model: Model) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for unit in model.units.values():
        found[unit.shape] += unit.size * (unit.kind != "embedding")
    return found


def _typical(shapes: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    """Rows and columns near those of the layers that have most of the weights."""
    near_by = lambda size: max(_LEAST, min(_MOST, 1 << (size - 1).bit_length()))
    sizes: Counter[tuple[int, int]] = Counter()
    for (rows, columns), size in shapes.items():
        sizes[near_by(rows), near_by(columns)] += size
    return max(sizes, key=lambda shape: (sizes[shape], shape), default=(_LEAST, _LEAST))


def _times(dtype: torch.dtype, shape: tuple[int, int], seconds: Seconds) -> dict[str, float]:
    return {kind: seconds(kind, dtype, *shape) for kind in _GRADIENTS}


def _total(times: Mapping[str, float], work: Counter[str]) -> float:
    return sum(times[kind] * count for kind, count in work.items())


def _why(own: Mapping[str, float], wide: Mapping[str, float], stored: str, shape: tuple[int, int]) -> str:
    """The speeds that decided, in billions of operations a second."""
    speed = lambda times, kind: f"{2e-9 * _TOKENS * shape[0] * shape[1] / times[kind]:.3g}"
    shown = [f"{words} {speed(wide, kind)} against {speed(own, kind)}" for kind, words in (("linear", "forward"), ("gradient", "backward"))]
    return f"products in float32 against {stored}, billions of operations a second on this processor: {', '.join(shown)}"


def measured() -> Seconds:
    """Times of this machine, taken once and kept."""
    clock = Clock(default_path())
    key = lambda kind, dtype, rows, columns: f"{kind} {rows}x{columns} on {_TOKENS} in {str(dtype)[6:]}"
    return lambda kind, dtype, rows, columns: clock.of(
        key(kind, dtype, rows, columns), lambda: time_product(kind, dtype, rows, columns)
    )  # fmt: skip


def time_product(kind: str, dtype: torch.dtype, rows: int, columns: int) -> float:
    """Least seconds of one product of ``_TOKENS`` rows: ``linear`` with a weight (rows, columns), ``gradient`` back through it."""
    chance = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=chance).to(dtype)
    met = torch.randn(_TOKENS, columns if kind == "linear" else rows, generator=chance).to(dtype)
    product = (lambda: torch.nn.functional.linear(met, weight)) if kind == "linear" else lambda: met @ weight
    spells = []
    for _ in range(_SPELLS):  # apart in time: what else runs on the machine rarely lasts through all
        spells += timed(product, seconds=_SECONDS, repeats=_REPEATS)
        time.sleep(_PAUSE)
    return min(spells)
