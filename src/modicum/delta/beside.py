"""Beside: what a delta holds that no weight can, such as prompts and added modules, by the place where it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modicum.core.aside import Aside
from modicum.core.errors import ModelError, SettingError, quoted
from modicum.core.option import Option
from modicum.core.tensorformat import raw_bytes


@dataclass(frozen=True)
class Beside:
    """An aside's tensors at one place: ``method`` is its option as text, ``beneath`` the ``fingerprint`` of the module that it was trained beside."""

    place: str
    method: str
    tensors: Mapping[str, torch.Tensor]
    beneath: str = ""

    @property
    def aside(self) -> Aside:
        """The method that computes with the tensors. Raises ``ModelError`` where the text names none."""
        try:
            (step,) = Option.parse(self.method, trained=True).steps
            if not isinstance(step, Aside):
                raise ValueError("it does not stand beside a module")
        except (SettingError, ValueError) as error:
            raise ModelError(
                f"delta: what stands at {quoted(self.place or 'the whole model')} must be known here ({quoted(error)}). Write it anew."
            ) from None
        return step

    @property
    def nbytes(self) -> int:
        """Exact bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the tensors with their names, dtypes and shapes."""
        return _hashed(self.tensors)

    def describe(self) -> dict[str, Any]:
        """What ``delta.json`` says of it."""
        return {
            "place": self.place, "method": self.method, "mergeable": self.aside.mergeable, "beneath": self.beneath,
            "tensors": sorted(self.tensors), "digest": self.digest,
        }  # fmt: skip


def restored(described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Beside:
    """What ``describe`` said, with its tensors. Raises ``ModelError`` where they are not the ones that were written."""
    made = Beside(str(described["place"]), str(described["method"]), tensors, str(described["beneath"]))
    if made.digest != described["digest"]:
        raise ModelError(
            f"delta: what stands at {quoted(made.place or 'the whole model')} must be as it was written, is not. Copy it again."
        )
    return made


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers as they are stored, whatever stands in their place at the time."""
    found = dict(module.state_dict())
    return _hashed({name: value for name, value in found.items() if isinstance(value, torch.Tensor)})


def _hashed(tensors: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(raw_bytes(tensor.clone().reshape(-1)))
    return found.hexdigest()
