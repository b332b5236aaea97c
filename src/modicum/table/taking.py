"""What ``--activations`` makes of options: inputs in eight bits beside weights in eight bits, as runtimes multiply them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from modicum.core.errors import SettingError
from modicum.core.method import Method
from modicum.core.option import KEEP, Option
from modicum.quantize._family import Quantizer
from modicum.quantize.activations import Activations
from modicum.quantize.float8 import Float8

_BESIDE = {"int8": "8-bit integers, such as 'gptq bits=8 group=0'", "fp8": "8-bit floats, 'float8'"}


@dataclass(frozen=True)
class Taking:
    """How inputs are taken beside weights of eight bits, as the request says."""

    step: Activations

    @classmethod
    def of(cls, format: str | None, scale: str) -> Taking | None:
        """None where the request says nothing of inputs."""
        return None if format is None else cls(Activations(format=format, scale=scale))

    def method(self, option: Option) -> Option:
        """A method that is asked for everywhere, with its inputs in eight bits. Raises ``SettingError`` where its weights are none beside them."""
        if _said(option):
            return option
        if not option.steps or not self._beside(option.steps[-1]):
            raise self._unsuited(f"the method is {option}")
        return self._whole(option)

    def menu(self, options: Iterable[Option], declared: bool) -> list[Option]:
        """A menu whose weights of eight bits all have their inputs in eight bits; those that cannot are left out, and fewer bits stay as they are.

        Of a ``declared`` one, whole rows of integers share a scale. Raises ``SettingError`` where nothing on it has eight bits.
        """
        found = list(dict.fromkeys(self._menu(options, declared)))
        if not any(map(_said, found)):
            raise self._unsuited(f"the menu has {', '.join(map(str, found)) or KEEP}")
        return found

    def _menu(self, options: Iterable[Option], declared: bool) -> Iterator[Option]:
        for option in options:
            last = option.steps[-1] if option.steps else None
            if last is None or not _eight(last):
                yield option
            elif self._beside(last):
                whole = replace(last, group=0) if declared and isinstance(last, Quantizer) else last
                yield self._whole(Option((*option.steps[:-1], whole)))

    def _whole(self, option: Option) -> Option:
        last = option.steps[-1]
        if isinstance(last, Quantizer) and last.group:
            rest = " ".join(word for word in str(option).split() if not word.startswith("group="))
            raise SettingError(
                f"activations {self.step.format}: weights beside them must have one scale per row, {str(option)!r} has one for "
                f"{'all' if last.group < 0 else f'{last.group} columns'}. Write '{rest} group=0'."
            )
        return Option((*option.steps, self.step))

    def _beside(self, step: Method) -> bool:
        return isinstance(step, Float8) if self.step.format == "fp8" else isinstance(step, Quantizer) and step.bits == 8

    def _unsuited(self, came: str) -> SettingError:
        format = self.step.format
        other = "int8" if format == "fp8" else "fp8"
        return SettingError(
            f"activations {format}: must stand beside weights in {_BESIDE[format]}, {came}. Write such an option, pass --activations {other} "
            "where it suits, or leave it out."
        )


def _eight(step: Method) -> bool:
    """Whether a step leaves weights in eight bits."""
    return isinstance(step, Float8) or (isinstance(step, Quantizer) and step.bits == 8)


def _said(option: Option) -> bool:
    """Whether an option says itself how inputs are taken."""
    return bool(option.steps) and isinstance(option.steps[-1], Activations)


def apart(option: Option) -> str:
    """Why a target whose runtimes multiply codes holds a method on no layer; nothing where it takes inputs as they are."""
    if not _said(option):
        return ""
    return "whose runtimes multiply 8-bit integers of one scale per row (bits=8 group=0) by int8, and float8 by fp8, and nothing else"


def untaken(options: Iterable[tuple[str, Option]]) -> list[str]:
    """Names of what has weights of eight bits and its inputs as they are."""
    return [name for name, option in options if option.steps and _eight(option.steps[-1])]
