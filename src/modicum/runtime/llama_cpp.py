"""What a model takes in llama.cpp: weights as they lie in the file, and buffers that it sets aside before the first token."""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from typing_extensions import override

from modicum.core.budget import readable
from modicum.core.errors import BudgetError, ModelError, quoted
from modicum.core.unit import Unit
from modicum.export.gguf import timing
from modicum.export.gguf.architectures import head_width, row_of
from modicum.export.gguf.file import FILE
from modicum.export.gguf.naming import DENSE
from modicum.export.gguf.target import NUMBERS, Gguf, inside
from modicum.forms import Cut, Dense, Form, Ggml
from modicum.runtime.runtime import Runtime, left

# Tokens that are computed at a time, and positions that keys and values are set aside for together, unless its user asks for others.
_AT_ONCE, _POSITIONS = 512, 256


class LlamaCpp(Runtime):
    """Prices of forms in llama.cpp, for ``batch`` sequences of ``context`` tokens at its own settings.

    Weights stay in their blocks, whose bytes are mapped from the file. Keys and values are float16 for every position, whatever windows layers look
    at; what is computed at a time is float32. So memory is no less than what its loader says it takes: of a Llama whose feed-forward is three times
    as wide as its stream it is the same, of one as wide as its stream a third of that buffer too much.

    Time is that of taking in all texts and saying what follows each. A product's seconds are those of llama.cpp's own kernel for its type and
    shape, which the clock keeps; what an original takes beside its products is the same for all that is made of it, but for blocks that go.

    *Needs and cost:* time needs llama.cpp's binding for Python, and the original written as a file for as long as it is timed.
    """

    packed = True

    @override
    def shape(self, unit: Unit, form: Form) -> tuple[int, int]:
        return left(form)

    @override
    def memory(self, unit: Unit, form: Form) -> int:
        """Bytes a unit takes in the file."""
        return (form.inner if isinstance(form, Cut) else form).nbytes

    # Time

    @override
    def seconds(self, unit: Unit, form: Form) -> float:
        """Seconds of a unit's products in one pass; a table that is only looked up takes none."""
        return self._raw(unit, form) * self._share

    def _raw(self, unit: Unit, form: Form) -> float:
        rows, columns = left(form)
        count = self._times(unit)
        return sum(self._product(_type(form), rows, columns, tokens) * often for tokens, often in count) if rows and columns else 0.0

    @cached_property
    def _products(self) -> float:
        """Seconds of the original's products, each timed alone."""
        return sum(self._raw(unit, _dense(unit)) for unit in self.model.stored.units.values())

    @cached_property
    def _share(self) -> float:
        """What brings products timed alone to the whole, where they are more than that."""
        return min(1.0, self.original() / self._products) if self._products else 1.0

    def _times(self, unit: Unit) -> list[tuple[int, float]]:
        """Tokens that a unit's weight meets at once, and how often it does."""
        if unit.kind == "embedding" and not unit.aliases:
            return []
        if not self.script.block_of.get(unit.name):  # the head, of what is asked for alone
            return [(self.batch, 1)]
        whole, rest = divmod(self._tokens, _AT_ONCE)
        pieces = [(_AT_ONCE, float(whole)), (rest, 1.0)]
        if unit.expert is not None:
            share = self._chosen / unit.stored_shape[0]
            pieces = [(max(1, round(tokens * share)), often * min(1.0, tokens * share)) for tokens, often in pieces]
        return [(tokens, often) for tokens, often in pieces if tokens and often]

    @property
    def _chosen(self) -> int:
        return int(getattr(self._config, "num_experts_per_tok", None) or 1)

    def _product(self, type: str, rows: int, columns: int, tokens: int) -> float:
        key = f"{rows}x{columns} on {tokens} as {type} in llama.cpp {timing.version()}"
        number, threads = NUMBERS[type], torch.get_num_threads()
        return self._heard(lambda: self.clock.of(key, lambda: timing.product(number, rows, columns, tokens, threads)))

    @staticmethod
    def _heard(measure: Callable[[], float]) -> float:
        try:
            return measure()
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            raise ModelError(f"budget: llama.cpp must run here to be timed, does not ({quoted(error)}). Pass --size or --memory.") from None

    @override
    def original(self) -> float:
        """Seconds of the original, as a file without blocks."""
        key = f"{self.model.stored.hash()[:16]}: {self.batch} x {self.context} in llama.cpp {timing.version()}"
        return self.clock.of(key, self._original)

    def _original(self) -> float:
        model, free = self.model.stored, psutil.virtual_memory().available
        if model.dense_bytes + self.overhead() > free:
            raise BudgetError(
                f"budget: the whole original must fit in memory to be timed, needs {readable(model.dense_bytes + self.overhead())} where "
                f"{readable(free)} are free. Pass a size instead, or a smaller --context."
            )
        with tempfile.TemporaryDirectory(prefix="modicum-timed-") as folder:
            (path,) = Gguf(model, self.script).layout({}, {}, frozenset()).write(Path(folder))
            return self.written(path.parent)

    @override
    def written(self, directory: Path) -> float:
        """Seconds of the file in a directory, in the better of two processes: one of them may have met a busy machine."""
        run = lambda: timing.passed(directory / FILE, self.batch, self.context, torch.get_num_threads())
        return self._heard(lambda: min(run(), run()))

    @override
    def rest(self) -> float:
        return max(0.0, self.original() - self._products)

    @override
    def block_rest(self, block: str) -> float:
        """A block's share of what is no product's, of which what is outside all blocks counts as one more."""
        return self.rest() / (1 + len(self.model.blocks))

    # Memory

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


def _type(form: Form) -> str:
    """The type that a form has in the file."""
    inner = inside(form)
    return inner.type if isinstance(inner, Ggml) else DENSE[inner.dtype]


def _dense(unit: Unit) -> Form:
    return Dense(torch.empty(unit.shape, dtype=unit.dtype, device="meta"))
