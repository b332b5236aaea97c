"""Half: half precision with one scale per row."""

from __future__ import annotations

import torch
from typing_extensions import override

from modicum.forms.scaled import Scaled


class Half(Scaled):
    """``numbers · scale`` with numbers float16 (rows, columns) and scale (rows, 1) in the weight's dtype."""

    kind, part, stored = "half", "halves", torch.float16

    @override
    def dense(self) -> torch.Tensor:
        wide = torch.promote_types(self.dtype, torch.float32)
        return (self.numbers.to(wide) * self.scale.to(wide)).to(self.dtype)
