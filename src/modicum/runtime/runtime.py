"""What a model takes in PyTorch, where Transformers and our own container run: memory and time. Every weight is dense once it is used."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modicum.core.budget import readable
from modicum.core.errors import BudgetError, ModelError
from modicum.core.unit import Site, Unit
from modicum.data.splits import Batch, call
from modicum.export.narrow import narrowable
from modicum.forms import Cut, Form, Sum
from modicum.models.copying import copied
from modicum.models.model import Model
from modicum.runtime.clock import Clock, Watched, default_path, watch
from modicum.sweep import Script

# Operations of one pass that are worth counting; a layer of a transformer has about a hundred.
_OPERATIONS = 30_000
# The original runs for about so many seconds, and again with every part on the clock.
_SECONDS = 2.0
# Bytes of attention scores per pair of positions and head where they are computed one by one: raw, masked, and their softmax in float32.
_SCORE_BYTES = 12


class Runtime:
    """Prices of forms in PyTorch on this machine, for one forward pass of ``batch`` sequences of ``context`` tokens.

    Memory is told from shapes. Time is measured: the original runs as it is, part by part on the clock, and what a cut leaves of a unit takes
    the unit's time there in the proportion in which the ``clock``'s times of the two shapes stand; what lies between the units of a coupled cut
    (attention, activation functions) takes the share of groups that is kept. So units, blocks and the rest add up to the whole.

    ``cuts`` are the coupled cuts that forms come from: those whose modules cannot be loaded narrower, which is tried once, save neither memory
    nor time. ``example`` is a batch of the model's inputs, brought to ``batch`` and ``context``; without it tokens are drawn by chance.

    *Needs and cost:* time, and whether a cut is narrow, need the whole original in memory; a few forward passes. *Raises:* ``BudgetError`` where
    the original does not fit the memory that is free, or does not take ``context`` tokens.
    """

    # Whether weights stay as few bytes in memory as in the file.
    packed = False
    # Whether keys and values are to be kept in eight bits.
    narrow_cache = False

    def __init__(
        self, model: Model, script: Script, *, batch: int, context: int, example: Batch | None = None,
        cuts: Mapping[str, Site] | None = None, clock: Clock | None = None,
    ):  # fmt: skip
        self.model, self.script, self.batch, self.context = model, script, batch, context
        self.example, self.cuts, self.clock = example, cuts or {}, clock or Clock(default_path())

    def pricing(self, timed: bool) -> Callable[[Unit, Form], tuple[int, float]]:
        """Memory in bytes and seconds of a unit in a form; seconds are 0 unless ``timed``."""
        return lambda unit, form: (self.memory(unit, form), self.seconds(unit, form) if timed else 0.0)

    def shape(self, unit: Unit, form: Form) -> tuple[int, int]:
        """Rows and columns that a unit in a form has in the runtime: those a cut leaves, where it can be narrow."""
        rows, columns = left(form)
        return unit.shape if (rows, columns) != unit.shape and unit.name in self.wide else (rows, columns)

    @cached_property
    def wide(self) -> frozenset[str]:
        """Units whose cuts leave zeros in the runtime, for the model's own forward does not take narrower ones."""
        if not self.cuts:
            return frozenset()
        with self._loaded(0):
            narrow = narrowable(self.model.stored.module, list(self.cuts.values()), self._input(2, min(self.context, 16)))
        return frozenset(unit.name for name, site in self.cuts.items() if name not in narrow for unit in site.units)

    # Memory

    def memory(self, unit: Unit, form: Form) -> int:
        """Bytes a unit takes once it is used: dense, of what a cut leaves."""
        rows, columns = self.shape(unit, form)
        return rows * columns * unit.dtype.itemsize

    def overhead(self) -> int:
        """Bytes beside weights at the worst moment of one pass: cached keys and values, and activations.

        Counted on a pass of tensors that have shapes and no values, so that it takes neither memory nor the weights; where the model's forward
        asks for values, ``cache`` and ``activations`` estimate it.
        """
        return self.counted or self.cache() + self.activations()

    @cached_property
    def counted(self) -> int | None:
        """Bytes that tensors beside the weights hold at the worst moment of one pass, or None where it cannot be told without values.

        A pass of too many operations (a scan that goes token by token) is counted on fewer tokens and scaled up, with what does not
        grow with them: rather too much than too little.
        """
        context = self.context
        while context:
            for experts in ("", "grouped_mm"):  # the plain loop over experts asks which were chosen
                try:
                    return math.ceil(
                        counted_bytes(self.model.stored.module, self._input(self.batch, context), experts) * self.context / context
                    )
                except _TooLongError:
                    break
                except Exception:  # whatever a forward does that tensors without values cannot answer
                    continue
            else:
                return None
            context //= 2
        return None

    def cache(self) -> int:
        """Bytes of keys and values for all positions, by what the config says; 0 for a model that keeps none.

        Layers that look at a window alone count in full, and states of layers without attention, which do not grow, are left out.
        """
        config = self._config
        heads = getattr(config, "num_attention_heads", 0)
        if not self.model.is_causal or not heads or not getattr(config, "use_cache", True):
            return 0
        return self._attending * self._cached_values(heads) * self._tokens * self.model.dtype.itemsize

    def _cached_values(self, heads: int) -> int:
        """Values kept per layer and position: keys and values of the heads that have their own, or what both are made from."""
        config = self._config
        if latent := getattr(config, "kv_lora_rank", None):
            return latent + getattr(config, "qk_rope_head_dim", 0)
        width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
        return 2 * (getattr(config, "num_key_value_heads", None) or heads) * width

    @property
    def _config(self) -> Any:
        config = self.model.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def _tokens(self) -> int:
        return self.batch * self.context

    @property
    def _attending(self) -> int:
        """Number of layers with attention."""
        kinds = getattr(self._config, "layer_types", None) or getattr(self._config, "layers_block_type", None)
        if isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds):
            return sum("attention" in kind and "linear" not in kind for kind in kinds)
        return getattr(self._config, "num_hidden_layers", len(self.model.blocks))

    def activations(self) -> int:
        """Bytes of activations at the worst moment of one pass, all positions at once, estimated from the units' shapes.

        Four times the residual stream (the embeddings, the stream, its normed copy, what is added to it); with it the larger of twice what the
        widest stage inside a block puts out (gate, up and their product; queries, keys, values and their rotated copies) and the outputs of the
        head; attention scores where they are computed one by one. With ``cache`` it is within a third of what is counted for decoders with a
        fused attention; scans of state-space layers, which keep a state per position, hold many times as much.
        """
        stream, inside, outside = self._widths
        return (4 * stream + max(2 * inside, outside)) * self._tokens * self.model.dtype.itemsize + self._scores()

    @property
    def _widths(self) -> tuple[int, int, int]:
        """Columns of the residual stream, rows of the widest stage inside a block, and of the widest outside them."""
        inside, outside, stream = 0, 0, 0
        for stage in self.script.stages:
            units = [self.model.units[name] for name in stage if self.model.units[name].kind != "embedding"]
            rows, columns = sum(unit.shape[0] for unit in units), max((unit.shape[1] for unit in units), default=0)
            stream = max(stream, min(rows, columns))
            if self.script.block_of.get(stage[0]):
                inside = max(inside, rows)
            else:
                outside = max(outside, rows)
        return stream, inside, outside

    def _scores(self) -> int:
        if getattr(self._config, "_attn_implementation", None) != "eager":
            return 0
        return _SCORE_BYTES * getattr(self._config, "num_attention_heads", 0) * self._tokens * self.context

    # Time

    def seconds(self, unit: Unit, form: Form) -> float:
        """Time of a unit in one forward pass at the shape a cut leaves, and with a cut's consumer of what lies between the cut's units."""
        whole, between = self.watched.units.get(unit.name, 0.0), self.watched.between.get(unit.name, 0.0)
        shape = self.shape(unit, form)
        if shape != unit.shape and whole:
            tokens = self.watched.tokens[unit.name]
            whole *= self.clock.linear(*shape, tokens, unit.dtype) / self.clock.linear(*unit.shape, tokens, unit.dtype)
        return whole + between * shape[1] / unit.shape[1]

    def written(self, directory: Path) -> float | None:
        """Median seconds of what was written there; None where a runtime does not tell."""
        return None

    def original(self) -> float:
        """Median seconds of one forward pass of the original."""
        return self.watched.seconds

    def rest(self) -> float:
        """Seconds that no unit's are, blocks' own rest included."""
        return max(0.0, self.original() - sum((*self.watched.units.values(), *self.watched.between.values())))

    def block_rest(self, block: str) -> float:
        """The part of ``rest`` that goes with a block when it is left out."""
        return self._rests.get(block, 0.0)

    @cached_property
    def _rests(self) -> dict[str, float]:
        parts = (*self.watched.units.items(), *self.watched.between.items())
        found = {}
        for block, whole in self.watched.blocks.items():
            found[block] = max(0.0, whole - sum(seconds for unit, seconds in parts if self.script.home(unit, (block,))))
        return _within(found, self.rest())

    @cached_property
    def watched(self) -> Watched:
        """The original's times, measured once."""
        with self._loaded(self.overhead()), torch.no_grad():
            found = self._watch(self.batch, self.context, 1.0)
            tokens = self.example is None or any(_tokens(value) for _, value in _entries(self.example))
            # What calling alone takes, one token shows; it stays whatever is cut.
            fixed = self._watch(1, 1, 0.1).between if tokens else {}
        found.units = _within(found.units, found.seconds)
        scaling = {name: max(0.0, value - fixed.get(name, 0.0)) for name, value in found.between.items()}
        found.between = _within(scaling, found.seconds - sum(found.units.values()))
        return found

    def _watch(self, batch: int, context: int, share: float) -> Watched:
        example = self._input(batch, context)
        run = lambda: call(self.model.stored.module, example, cached=True)
        try:
            return watch(self.model.stored, self.script, run, self.cuts.values(), seconds=share * _SECONDS)
        except IndexError:
            raise BudgetError(
                f"--context: must be what the model takes, got {self.context} tokens{self._most()}. Pass a smaller --context: the tokens of the "
                "pass whose time is limited."
            ) from None

    def _most(self) -> str:
        most = getattr(self._config, "max_position_embeddings", None)
        return "" if most is None else f" where it has {most} positions"

    @contextmanager
    def _loaded(self, overhead: int) -> Iterator[None]:
        """Inside, every weight is in memory. Raises ``BudgetError`` where there is not room for them and ``overhead`` bytes."""
        weights = self.model.stored.weights
        absent = [name for name in weights.names if weights.held(name).device.type == "meta"]
        needed = sum(weights.held(name).numel() * weights.dtype(name).itemsize for name in absent) + overhead
        free = psutil.virtual_memory().available
        if needed > free:
            raise BudgetError(
                f"budget: the whole original must fit in memory, to be timed and to try its cuts, needs {readable(needed)} with "
                f"{self.batch} x {self.context} tokens where {readable(free)} are free. Pass a size instead, or a smaller --context."
            )
        weights.load(absent)
        try:
            yield
        finally:
            weights.release(absent)

    def _input(self, batch: int, context: int) -> Batch:
        """What the model is run on. Raises ``ModelError`` where nothing is known that it takes."""
        if self.example is not None:
            fitted = {name: _fitted(value, batch, context) for name, value in _entries(self.example)}
            return fitted if isinstance(self.example, dict) else tuple(fitted.values())
        entries = getattr(self._config, "vocab_size", None)
        if entries is None or getattr(self.model.module, "main_input_name", "") != "input_ids":
            raise ModelError(f"{self.model.name}: time needs an example of its inputs, none came. Give batches.")
        return {"input_ids": torch.randint(entries, (batch, context), generator=torch.Generator().manual_seed(0))}


def _within(parts: Mapping[str, float], most: float) -> dict[str, float]:
    """Parts brought to ``most`` in all where medians of parts add up to more than that of the whole."""
    total, most = sum(parts.values()), max(0.0, most)
    share = most / total if total > most else 1.0
    return {name: value * share for name, value in parts.items()}


def _entries(batch: Batch) -> list[tuple[Any, torch.Tensor]]:
    return list(batch.items()) if isinstance(batch, dict) else list(enumerate(batch))


def _tokens(value: torch.Tensor) -> bool:
    return value.ndim == 2 and not value.is_floating_point()


def _fitted(value: torch.Tensor, batch: int, context: int) -> torch.Tensor:
    """A tensor of a batch repeated or cut to ``batch`` rows, and to ``context`` columns where it holds tokens."""
    value = value[torch.arange(batch) % len(value)]
    return value[:, torch.arange(context) % value.shape[1]] if _tokens(value) else value


class _TooLongError(Exception):
    """A pass has more operations than are worth counting."""


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors made while it is open, and the most that were alive at once."""

    def __init__(self, weights: Iterable[torch.Tensor]):
        super().__init__()
        self.held = {tensor.untyped_storage()._cdata: 0 for tensor in weights}
        self.now = self.most = self.operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.operations += 1
        if self.operations > _OPERATIONS:
            raise _TooLongError
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.held:
            self.held[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.now -= self.held.pop(key)


@torch.no_grad()
def alive(module: nn.Module, batch: Batch) -> int:
    """Most bytes that tensors beside the weights hold at once while ``module`` runs on ``batch``; what a kernel needs inside is not seen."""
    with _Alive((*module.parameters(), *module.buffers())) as count:
        module(**batch) if isinstance(batch, Mapping) else module(*batch)
    return count.most


def counted_bytes(module: nn.Module, batch: Batch, experts: str = "") -> int:
    """``alive`` of a copy of the module with no values in its weights; ``experts`` names the implementation of experts it should use."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    with FakeTensorMode() as mode:
        hollow: dict[int, Any] = {id(buffer): mode.from_tensor(buffer) for buffer in module.buffers()}
        hollow |= {id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=False) for p in module.parameters()}
        twin = copied(module, known=hollow)
        if experts:
            twin.set_experts_implementation(experts)  # type: ignore[operator]
        inputs: Any = {name: mode.from_tensor(value) for name, value in _entries(batch)}
        logger.setLevel(logging.CRITICAL)  # what it cannot answer is no error here
        try:
            return alive(twin, inputs if isinstance(batch, dict) else tuple(inputs.values()))
        finally:
            logger.setLevel(level)


def left(form: Form) -> tuple[int, int]:
    """Rows and columns that a cut leaves, or all."""
    first = form.parts[0] if isinstance(form, Sum) else form
    return first.inner.shape if isinstance(first, Cut) else form.shape
