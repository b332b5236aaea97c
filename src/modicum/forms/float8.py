"""Float8: E4M3 values with one scale per row."""

from __future__ import annotations

import torch
from typing_extensions import override

from modicum.forms.scaled import Scaled


class Float8(Scaled):
    """``numbers · scale`` with numbers float8_e4m3fn (rows, columns) and scale (rows, 1) in the weight's dtype."""

    kind, part, stored = "float8", "codes", torch.float8_e4m3fn

    @override
    def dense(self) -> torch.Tensor:
        return self.numbers.to(self.dtype) * self.scale
