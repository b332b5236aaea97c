"""What vLLM runs: the ``transformers`` target's files, as far as vLLM fuses modules alike and has kernels for them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError, listed
from modicum.core.method import Method
from modicum.core.option import Option
from modicum.core.unit import Site, Unit
from modicum.data.splits import Batch
from modicum.export.hf import Transformers
from modicum.export.schemes import inside
from modicum.export.vllm.architectures import RELEASE, Architecture, row_of
from modicum.export.vllm.fusion import require_readable
from modicum.forms import Activated, Float4, Form
from modicum.models.model import Model
from modicum.quantize._family import Quantizer
from modicum.quantize.bitsandbytes import Bitsandbytes
from modicum.sweep import Script

# What kernels that come with vLLM take of packed integers: their bits, and the columns that share a scale (0: the whole row).
_BITS, _GROUPS = (4, 8), (0, 32, 64, 128)
# Rows and columns of a weight are a multiple of this: kernels for processors ask for it, those for GPUs fill up what is missing.
_STEP = 32
# Columns of what experts read that the one kernel asks for which takes a scale for a whole row of an expert.
_EXPERTS_STEP = 128
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Vllm(Transformers):
    """compressed-tensors directories whose every layer vLLM runs.

    Beside the rules of Transformers' own loader: packed integers of 4 or 8 bits, rows or groups of 32, 64 or 128 columns under a scale; what vLLM
    makes one layer of is quantized alike or not at all; the head stays dense where its class does not ask for a quantized one; experts have the
    three projections that its loader knows. Weights of two to seven bits other than four have one kernel there (Humming), for GPUs alone, which
    nothing here can hold its result against, and no reader here brings packed zero points back, so they are left out.
    """

    name = "vllm"
    asked = True

    def __init__(self, model: Model, script: Script):
        super().__init__(model, script)
        row, cls = row_of(type(model.module)), type(model.module).__name__
        if row is None:
            raise ModelError(
                f"{model.name}: target vllm: must be of an architecture whose layers in vLLM are known here, {cls} is none. "
                "Pass --target transformers."
            )
        if model.dtype not in _DTYPES:
            raise ModelError(f"{model.name}: target vllm: must have weights of 16 or 32 bits, has {model.dtype}. Pass --target modicum.")
        self.row: Architecture = row

    # What can be held

    @override
    def refusal(self, unit: Unit) -> str:
        if reason := self._alone(unit):
            return reason
        return "target: fused with what stays dense" if unit.module in self._halved else ""

    def _alone(self, unit: Unit) -> str:
        """Why a unit stays dense whatever is fused with it."""
        if reason := super().refusal(unit):
            return reason
        if unit.kind == "expert":
            known = all(name.rpartition(".")[2] in self.row.experts for name, _ in self.pieces(unit))
            return "" if known else "target: expert layout"
        head = unit.module == self._head
        if head and not self.row.head:
            return "target: head"
        sizes = unit.shape[1:] if head else unit.shape  # the vocabulary is filled up
        return "target: kernel shape" if any(size % _STEP for size in sizes) else ""

    @cached_property
    def _head(self) -> str:
        """The name of the module that gives logits."""
        find = getattr(self.model.module, "get_output_embeddings", None)
        head = find() if callable(find) else None
        return next((name for name, module in self.model.module.named_modules() if module is head), "")

    @cached_property
    def _halved(self) -> set[str]:
        """Modules that vLLM fuses with one that stays dense."""
        linears = {unit.module: unit for unit in self.model.units.values() if unit.kind == "linear"}
        found: set[str] = set()
        for name in linears:
            parent, _, last = name.rpartition(".")
            together = next((members for members in self.row.fused.values() if last in members), ())
            fused = [f"{parent}.{member}" for member in together]
            if any(each not in linears or self._alone(linears[each]) for each in fused):
                found.add(name)
        return found

    @override
    def adapt(self, site: Site, option: Option) -> Option | None:
        fitted = super().adapt(site, option)
        return fitted if fitted is not None and all(self._runs(site, step) for step in fitted.steps) else None

    @override
    def against(self, site: Site, option: Option) -> str:
        if (reason := super().against(site, option)) or not option.steps or self._runs(site, option.steps[0]):
            return reason
        return (
            f"whose kernels take codes of {listed(map(str, _BITS))} bits in groups of {listed(map(str, _GROUPS))} columns (0: whole rows)"
        )

    @override
    def _unread(self, site: Site, step: Method) -> str:
        if isinstance(step, Bitsandbytes):
            return "whose files are compressed-tensors'; bitsandbytes' are those of target transformers"
        if getattr(step, "format", "").startswith("mxfp6"):
            return "which has no kernel for six-bit floats"
        return super()._unread(site, step)

    def _runs(self, site: Site, step: Method) -> bool:
        """Whether a kernel takes what a step makes of a site."""
        if not isinstance(step, Quantizer):
            return True
        whole = site.kind == "experts" and step.group == 0
        narrow = any(unit.shape[1] % _EXPERTS_STEP for unit in site.units)
        return step.bits in _BITS and step.group in _GROUPS and not (whole and narrow)

    # Files

    @override
    def describe(self, directory: Path, forms: Mapping[str, Form], dropped: frozenset[str]) -> None:
        super().describe(directory, forms, dropped)
        require_readable(directory, self.row)

    @override
    def verify(self, directory: Path, forms: Mapping[str, Form], batch: Batch | None = None) -> tuple[nn.Module, dict[str, Any]]:
        module, told = super().verify(directory, forms, batch)
        told["events"] = [*told.get("events", []), *_otherwise(forms)]
        return module, told | {"vLLM's rules": f"{require_readable(directory, self.row)} layers, each as vLLM {RELEASE} looks for it"}


def _otherwise(forms: Mapping[str, Form]) -> list[str]:
    """Where vLLM computes with the same files otherwise than what is judged here: whether inputs are rounded is its kernel's choice there."""
    held = [inside(form) for form in forms.values()]
    told = []
    if any(isinstance(form, Activated) and form.inputs.format == "int4" for form in held):
        told.append(
            "activations int4: what is judged here rounds inputs; vLLM chooses a kernel by the weights alone, and those for processors and Marlin "
            "leave inputs as they come, which loses less."
        )
    if any(isinstance(form, Float4) and form.layout.name == "mxfp4" for form in held):
        told.append(
            "mxfp4: what is judged here leaves inputs as they come; vLLM has one scheme for these weights with and without rounded inputs, and "
            "some GPUs' kernels round them. Pass --activations mxfp4 to be told what that loses."
        )
    if any(isinstance(form, Activated) and form.inputs.format == "mxfp4" for form in held):
        told.append(
            "activations mxfp4: what is judged here rounds inputs; vLLM has one scheme for these weights with and without rounded inputs, and "
            "most kernels leave them as they come, which loses less."
        )
    return told
