"""Floats of few bits without data: each weight to the nearest level of its group."""

from __future__ import annotations

import torch

from modicum import forms
from modicum.forms.minifloat import LAYOUTS
from modicum.numerics.minifloat import encode, fit


def form_of(codes: torch.Tensor, scale: torch.Tensor, layout: str, shift: int, dtype: torch.dtype) -> forms.Minifloat:
    """The form of a layout's codes."""
    cls = forms.Float4 if LAYOUTS[layout].bits == forms.Float4.bits else forms.Float6
    return cls(codes, scale, LAYOUTS[layout], shift, dtype)


def code(weight: torch.Tensor, layout: str, dtype: torch.dtype) -> forms.Minifloat:
    """Float32 ``weight`` (rows, columns) at the nearest levels of its groups."""
    scale, shift = fit(weight, LAYOUTS[layout], dtype)
    step = LAYOUTS[layout].value(scale, shift).repeat_interleave(LAYOUTS[layout].group, 1)[:, : weight.shape[1]]
    codes = encode(weight / step.clamp_min(torch.finfo(torch.float32).tiny), LAYOUTS[layout])
    return form_of(codes, scale, layout, shift, dtype)
