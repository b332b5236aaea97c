"""Activations: a weight's inputs in few bits as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from modicum.core.method import Change, Method, Need, Paper
from modicum.core.settings import param
from modicum.core.unit import Site, Stats
from modicum.forms import Form
from modicum.forms.activated import Rounding, scale_of
from modicum.quantize._unscaled import Unscaled, around, stored


@dataclass(frozen=True, kw_only=True)
class Activations(Method):
    """Round the inputs of a weight to eight or four bits as well, so that a runtime multiplies codes by codes.

    ``scale · code(x / scale)``, symmetric. A dynamic scale is each token's own, of its largest magnitude; a static one is found once, of the
    largest magnitude among all calibration inputs, and what is larger later is cut off. Of ``mxfp4`` 32 columns of a token share a power of two
    whatever ``scale`` says; of ``nvfp4`` 16 share a number of eight bits, over one of calibration's largest magnitude. It stands after the step
    that gives the weight its codes.

    *Shapes:* inputs (..., columns), scale (..., 1), or (1,) where it is static. *Needs and cost:* the inputs for a static scale, and for its
    harm; no bytes but a static scale's. *Reduces to:* the weights alone where inputs are codes times one scale. *Raises:* ``ModelError``
    where a static scale is asked for and no inputs were seen.

    Example:
        >>> import torch
        >>> str(Activations(scale="static"))
        'activations scale=static'

    """

    paper = Paper(
        "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", "2208.07339", 2022,
        "Dettmers, Tim and Lewis, Mike and Belkada, Younes and Zettlemoyer, Luke",
    )  # fmt: skip
    needs = frozenset({Need.INPUTS})
    weighed_by = frozenset({Need.INPUTS})
    wraps: ClassVar[bool] = True

    format: str = param(
        "int8", "codes of inputs: whole numbers of eight or four bits, or floats: E4M3, or E2M1 under powers of two (mxfp4) or E4M3 scales",
        choices=("int8", "fp8", "int4", "mxfp4", "nvfp4"),
    )  # fmt: skip
    scale: str = param("dynamic", "a scale for each token, or one for all that calibration finds", choices=("dynamic", "static"))

    @property
    def _static(self) -> bool:
        return self.format == "nvfp4" or (self.scale == "static" and self.format != "mxfp4")

    @override
    def wanted(self) -> frozenset[Need]:
        return self.needs if self._static else frozenset()

    def without_data(self) -> Method | None:
        """A token's own scale needs none."""
        return None if self._static else self

    def blueprint(self) -> Method:
        """What has the same bytes and needs no inputs."""
        return Unscaled(format=self.format, static=self._static)

    @override
    def apply(self, site: Site, stats: Mapping[str, Stats], current: Mapping[str, Form]) -> Change:
        return Change(forms={unit.name: around(current[unit.name], self._rounding(stats[unit.name])) for unit in site.units})

    def _rounding(self, stats: Stats) -> Callable[[Form, torch.Tensor | None], Rounding]:
        def found(form: Form, columns: torch.Tensor | None) -> Rounding:
            if not self._static:
                return Rounding(self.format)
            assert stats.inputs is not None
            largest = max((float(_kept(rows, columns).abs().amax()) for rows in stats.inputs if rows.numel()), default=0.0)
            return Rounding(self.format, stored(scale_of(torch.tensor([largest]), self.format), self.format, form))

        return found


def _kept(rows: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
    return rows if columns is None else rows[:, columns]
