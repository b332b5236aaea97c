"""What ``--activations`` makes of options: inputs in eight or four bits beside weights in as many, as runtimes multiply them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from modicum.core.errors import SettingError
from modicum.core.method import Method
from modicum.core.option import KEEP, Option
from modicum.quantize._family import Quantizer
from modicum.quantize.activations import Activations
from modicum.quantize.float4 import Float4
from modicum.quantize.float8 import Float8
from modicum.quantize.zeroquant_fp import ZeroquantFp

_BESIDE = {
    "int8": "8-bit integers, such as 'gptq bits=8 group=0'", "fp8": "8-bit floats, 'float8'", "int4": "4-bit integers, such as 'gptq bits=4'",
    "mxfp4": "4-bit floats under powers of two, 'float4 format=mxfp4'", "nvfp4": "4-bit floats under E4M3 scales, 'float4'",
}  # fmt: skip
_USUAL = {"int8": "gptq bits=8 group=0", "fp8": "float8", "int4": "gptq bits=4", "mxfp4": "float4 format=mxfp4", "nvfp4": "float4"}


@dataclass(frozen=True)
class Taking:
    """How inputs are taken beside weights of as many bits, as the request says."""

    step: Activations

    @classmethod
    def of(cls, format: str | None, scale: str) -> Taking | None:
        """None where the request says nothing of inputs."""
        return None if format is None else cls(Activations(format=format, scale=scale))

    def method(self, option: Option) -> Option:
        """A method that is asked for everywhere, with its inputs rounded. Raises ``SettingError`` where its weights are none beside them."""
        if rounds_inputs(option):
            return option
        if not option.steps or not self._beside(option.steps[-1]):
            raise self._unsuited(f"the method is {option}")
        return self._whole(option)

    def menu(self, options: Iterable[Option], declared: bool) -> list[Option]:
        """A menu whose weights of as many bits as inputs have all have them rounded; those that cannot are left out, others stay as they are.

        Of a ``declared`` one, whole rows of 8-bit integers share a scale, and where nothing on it has so many bits the usual option comes to it.
        Raises ``SettingError`` where nothing on any other has.
        """
        found = list(dict.fromkeys(self._menu(options, declared)))
        if declared and not any(map(rounds_inputs, found)):
            found.append(self._whole(Option.parse(_USUAL[self.step.format])))
        if not any(map(rounds_inputs, found)):
            raise self._unsuited(f"the menu has {', '.join(map(str, found)) or KEEP}")
        return found

    def _menu(self, options: Iterable[Option], declared: bool) -> Iterator[Option]:
        for option in options:
            last = option.steps[-1] if option.steps else None
            if last is None or rounds_inputs(option) or bits_of(last) != bits_of(self.step):
                yield option
            elif self._beside(last):
                whole = replace(last, group=0) if declared and isinstance(last, Quantizer) and last.bits == 8 else last
                yield self._whole(Option((*option.steps[:-1], whole)))

    def _whole(self, option: Option) -> Option:
        last = option.steps[-1]
        if isinstance(last, Quantizer) and last.bits == 8 and last.group:
            rest = " ".join(word for word in str(option).split() if not word.startswith("group="))
            raise SettingError(
                f"activations {self.step.format}: weights beside them must have one scale per row, {str(option)!r} has one for "
                f"{'all' if last.group < 0 else f'{last.group} columns'}. Write '{rest} group=0'."
            )
        return Option((*option.steps, self.step))

    def _beside(self, step: Method) -> bool:
        if self.step.format in ("mxfp4", "nvfp4"):
            return isinstance(step, Float4 | ZeroquantFp) and step.format == self.step.format
        return isinstance(step, Float8 if self.step.format == "fp8" else Quantizer) and bits_of(step) == bits_of(self.step)

    def _unsuited(self, came: str) -> SettingError:
        format = self.step.format
        other = {"fp8": "int8", "int8": "fp8", "int4": "mxfp4", "mxfp4": "int4", "nvfp4": "mxfp4"}[format]
        return SettingError(
            f"activations {format}: must stand beside weights in {_BESIDE[format]}, {came}. Write such an option, pass --activations {other} "
            "where it suits, or leave it out."
        )


def bits_of(step: Method) -> int:
    """Bits that a step leaves weights in, or rounds inputs to; 0 where it is not one of codes that runtimes multiply."""
    if isinstance(step, Activations):
        return int(step.format[-1])
    if isinstance(step, Quantizer):
        return step.bits
    return 8 if isinstance(step, Float8) else 4 if isinstance(step, Float4 | ZeroquantFp) and step.format in ("mxfp4", "nvfp4") else 0


def rounds_inputs(option: Option) -> bool:
    """Whether an option says how inputs are rounded."""
    return bool(option.steps) and isinstance(option.steps[-1], Activations)


def apart(option: Option) -> str:
    """Why a target whose runtimes multiply codes holds a method on no layer; nothing where it takes inputs as they are."""
    if not rounds_inputs(option):
        return ""
    return (
        "whose runtimes multiply 8-bit integers of one scale per row (bits=8 group=0) by int8, float8 by fp8, 4-bit integers by int4, float4 "
        "by nvfp4 and float4 format=mxfp4 by mxfp4, and nothing else"
    )


def untaken(options: Iterable[tuple[str, Option]], bits: int) -> list[str]:
    """Names of what has weights of so many bits and its inputs as they are."""
    return [name for name, option in options if option.steps and not rounds_inputs(option) and bits_of(option.steps[-1]) == bits]
