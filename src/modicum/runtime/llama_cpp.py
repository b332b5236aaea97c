"""What a model takes in llama.cpp: weights as they lie in the file, and buffers that it sets aside before the first token."""

from __future__ import annotations

import math
from typing import Any

from typing_extensions import override

from modicum.core.unit import Unit
from modicum.export.gguf.architectures import head_width, row_of
from modicum.forms import Cut, Form
from modicum.runtime.runtime import Runtime, left

# Tokens that are computed at a time, and positions that keys and values are set aside for together, unless its user asks for others.
_AT_ONCE, _POSITIONS = 512, 256


class LlamaCpp(Runtime):
    """Prices of forms in llama.cpp, for ``batch`` sequences of ``context`` tokens at its own settings.

    Weights stay in their blocks, whose bytes are mapped from the file. Keys and values are float16 for every position, whatever windows layers look
    at; what is computed at a time is float32. So memory is no less than what its loader says it takes: of a Llama whose feed-forward is three times
    as wide as its stream it is the same, of one as wide as its stream a third of that buffer too much. Time is not told.
    """

    packed = True

    @override
    def shape(self, unit: Unit, form: Form) -> tuple[int, int]:
        return left(form)

    @override
    def memory(self, unit: Unit, form: Form) -> int:
        """Bytes a unit takes in the file."""
        return (form.inner if isinstance(form, Cut) else form).nbytes

    @override
    def overhead(self) -> int:
        """Bytes beside weights: keys and values or states of all sequences, and what one piece of text is computed in."""
        return self.cache() + self.states() + self.activations()

    @override
    def cache(self) -> int:
        """Bytes of keys and values, of the heads that the file tells of."""
        positions = self.batch * _POSITIONS * math.ceil(self.context / _POSITIONS)
        row = row_of(type(self.model.stored.module))
        assert row is not None
        told = row.keys.get("attention.head_count_kv", row.keys["attention.head_count"])
        heads: Any = told(self._config) if callable(told) else getattr(self._config, told)
        return 4 * len(self.model.blocks) * int(heads) * head_width(self._config) * positions if heads else 0

    def states(self) -> int:
        """Bytes of what layers without attention remember."""
        config = self._config
        remembered = getattr(config, "state_size", 0) * 4 * getattr(config, "intermediate_size", 0)
        last = (getattr(config, "conv_kernel", 1) - 1) * 4 * getattr(config, "intermediate_size", 0)
        return (remembered + last) * len(self.model.blocks) * self.batch if remembered else 0

    @override
    def activations(self) -> int:
        """Bytes of what is computed at a time: four times the residual stream with one and a half times the widest stage of a block, or with the
        head's outputs; and the mask.
        """
        stream, inside, outside = self._widths
        tokens = min(_AT_ONCE, self._tokens)
        return tokens * (4 * (4 * stream + max(math.ceil(1.5 * inside), outside)) + 2 * self.context)
