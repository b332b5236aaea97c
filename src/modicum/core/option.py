"""An option: a pipeline of methods written as text, such as ``gptq bits=3 group=64 | eora rank=8``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from modicum.core import settings
from modicum.core.errors import ModelError, SettingError
from modicum.core.grammar import KEEP, require_order, spelled
from modicum.core.method import TRAINED, Change, Method, Need, meant, registry
from modicum.core.unit import Site, Stats

if TYPE_CHECKING:
    from modicum.forms import Form


# What of a unit's statistics a need is read from.
_READ = {
    Need.NORMS: "square", Need.MEANS: "total", Need.VARIANCES: "square", Need.COVARIANCE: "covariance", Need.INPUTS: "inputs",
    Need.SLOPES: "slopes", Need.WINDOW: "slopes", Need.GENERAL: "slopes",
}  # fmt: skip


def _fitting(step: Method, site: Site, stats: Mapping[str, Stats]) -> Method:
    """The step itself, or where inputs of a unit were not seen its stated stand-in, and an event. Raises ``ModelError`` where it has none."""
    parts = {part for need, part in _READ.items() if need in step.wanted()}
    unseen = [unit.name for unit in site.units if unit.name in stats and any(_lacks(stats[unit.name], part, step) for part in parts)]
    if not unseen:
        return step
    partly = any(stats[name].blocks is not None for name in unseen)
    unfelt = "slopes" in parts and not any(_lacks(stats[name], part, step) for name in unseen for part in parts - {"slopes"})
    stand_in = step.without_data() if hasattr(step, "without_data") else None
    if stand_in is None:
        seen = "their whole covariance was not" if partly else "none were"
        raise ModelError(f"{unseen[0]}: {step} needs inputs of it, and {seen} seen. Choose another option for it.")
    for name in unseen:
        why = "gradients of its weights" if unfelt else "inputs"
        stats[name].events.append(
            f"{'the covariance of its inputs is not whole' if partly and not unfelt else f'{why} were not seen'}, {stand_in} stands in for {step}"
        )
    return stand_in


def _lacks(stats: Stats, part: str, step: Method) -> bool:
    return (stats.moment if part == "covariance" and step.blockwise else getattr(stats, part)) is None


@dataclass(frozen=True)
class Option:
    """Methods applied one after the other; no step at all is ``keep``, which leaves the weights as they are."""

    steps: tuple[Method, ...] = ()

    @classmethod
    def parse(cls, text: str, *, trained: bool = False) -> Option:
        """Read an option's text. ``int4`` is short for ``gptq bits=4``, ``fp8`` for the eight-bit float.

        Raises ``SettingError``, for a step that is ``trained`` too unless it may be, or stands last on what the steps before it made.
        """
        return _parsed(text, trained, len(registry()))

    @property
    def closing(self) -> Method | None:
        """The step that is trained after assembly, where there is one."""
        return self.steps[-1] if len(self.steps) > 1 and self.steps[-1].closes else None

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        return " | ".join(map(str, self.steps)) or KEEP

    @property
    def feels(self) -> bool:
        """Whether a step asks how much the output feels each row."""
        return any(step.feels for step in self.steps)

    @property
    def rounds(self) -> bool:
        """Whether a step rounds to as many bits as it is told, or to as many in the mean."""
        return any(step.family() == "quantize" and any(part.metadata.get("dial") for part in fields(step)) for step in self.steps)

    @property
    def needs(self) -> frozenset[Need]:
        """Union of what the steps need."""
        return frozenset().union(*(step.wanted() for step in self.steps))

    @property
    def weighed_by(self) -> frozenset[Need]:
        """What its harm is weighed by beyond that."""
        return frozenset().union(*(step.weighed_by for step in self.steps))

    @property
    def data_free(self) -> bool:
        """Whether no step needs calibration data."""
        return not self.needs

    @property
    def by_rows(self) -> bool:
        """Whether what it makes of some rows of a weight, without data, is what it makes of them in the whole."""
        return bool(self.steps) and all(step.by_rows for step in self.steps)

    @property
    def keeps_zeros(self) -> bool:
        """Whether each step makes forms that can hold chosen entries at zero."""
        return all(step.family() in ("quantize", "prune") for step in self.steps)

    def without_data(self) -> Option | None:
        """The option for weights whose inputs were not seen: every step's stated stand-in, or None where a step has none."""
        return self._stood_in("without_data")

    def looked_up(self) -> Option | None:
        """The option for tables where gradients of the output are taken: what a step does there, or its stand-in without data."""
        return self._stood_in("looked_up", "without_data")

    def _stood_in(self, *ways: str) -> Option | None:
        """Of every step the first of its ``ways``; what is for tables tells by itself what it lacks."""
        others = lambda step: (getattr(step, way)() for way in ways if hasattr(step, way))
        steps = [step if step.tables else next(others(step), step if step.data_free() else None) for step in self.steps]
        return None if any(step is None for step in steps) else Option(tuple(step for step in steps if step is not None))

    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        """Apply the steps in order, each seeing the forms of the one before.

        Raises ``ModelError`` where a step fails on a weight, or makes NaN or Inf of it.
        """
        total, forms = Change(), dict(current)
        zeros = {unit.name: current[unit.name].dense() == 0 for unit in site.units if unit.pruned and unit.name in current}
        for step in (_fitting(step, site, stats) for step in self.steps):
            try:
                change = step.apply(site, stats, forms)
            except ModelError as error:
                raise ModelError(str(error) if site.name in str(error) else f"{site.name}: {error}") from None
            forms.update(change.forms)
            total.forms.update(change.forms)
            total.biases.update(change.biases)
            total.dropped += change.dropped
            total.conflicts |= change.conflicts
            total.events += change.events
        total.forms |= {name: total.forms[name].zeroed(zero) for name, zero in zeros.items() if name in total.forms}
        for name, form in total.forms.items():
            if not form.finite():
                raise ModelError(f"{name}: what {str(self)!r} makes of it must be finite, holds NaN or Inf. Choose another option for it.")
        return total


@lru_cache(4096)
def _parsed(text: str, trained: bool, methods: int) -> Option:
    """The option of a text, as long as no further ``methods`` are registered: a table has the same few thousands of times."""
    said = spelled(text)
    closing = lambda place: 0 < place == len(said) - 1
    steps = [
        settings.read(meant(name, registry(), trained=trained, closing=closing(place)), given, name)
        for place, (name, given) in enumerate(said)
    ]
    if len(steps) > 1 and steps[-1].family() in TRAINED and not trained and not steps[-1].closes:
        raise SettingError(
            f"{said[-1][0]}: must be what a file holds beside a compressed weight to stand last, such as lora. Use modicum adapt."
        )
    if not trained:
        require_order(text, steps)
    return Option(tuple(steps))
