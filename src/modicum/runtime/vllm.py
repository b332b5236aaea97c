"""What a model takes in vLLM: weights as they lie in the file, and keys and values of all positions."""

from __future__ import annotations

from typing_extensions import override

from modicum.core.unit import Unit
from modicum.forms import Cut, Form
from modicum.runtime.runtime import Runtime, left


class Vllm(Runtime):
    """Prices of forms in vLLM, whose kernels multiply with packed weights; beside them memory is that of one pass in PyTorch.

    Keys and values are counted for ``batch`` sequences of ``context`` tokens; vLLM sets aside what its user allows. Time is not told.
    """

    packed = True

    @override
    def shape(self, unit: Unit, form: Form) -> tuple[int, int]:
        return left(form)

    @override
    def overhead(self) -> int:
        """The same, with keys and values as wide as vLLM keeps them."""
        saved = self.cache() * (self.model.dtype.itemsize - 1) // self.model.dtype.itemsize if self.narrow_cache else 0
        return max(super().overhead() - saved, super().overhead() // self.model.dtype.itemsize)

    @override
    def memory(self, unit: Unit, form: Form) -> int:
        """Bytes a unit takes in the file."""
        return (form.inner if isinstance(form, Cut) else form).nbytes
