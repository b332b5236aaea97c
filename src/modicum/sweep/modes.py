"""Modes that forwards share without saying so: torch's of a thread, its global switches, chance, fast paths and compilers."""

from __future__ import annotations

import itertools
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode

from modicum.sweep.carried import hooks, kept, restore

_DEVICES = ("cpu", "cuda")


def _filters(value: Any) -> None:
    warnings.filters = value
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _stream(name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(sys, name), lambda value: setattr(sys, name, value)


# What a ``with`` statement in a forward may set for the whole process, and its end puts back: how it is read and written.
_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    (torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    (lambda: warnings.filters, _filters),
    _stream("stdout"),
    _stream("stderr"),
)


@dataclass(frozen=True)
class Modes:
    """The modes of this thread and the switches of this process, as one forward has set them."""

    inference: bool
    switches: tuple[Any, ...]
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    functions: tuple[Any, ...]
    dispatches: tuple[Any, ...]

    @classmethod
    def now(cls) -> Modes:
        """The modes as they are."""
        devices = _DEVICES if torch.cuda.is_available() else _DEVICES[:1]
        casts = tuple((device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices)
        stacks = tuple(_get_current_function_mode_stack()), tuple(_get_current_dispatch_mode_stack())
        return cls(torch.is_inference_mode_enabled(), tuple(read() for read, _ in _SWITCHES), casts, *stacks)

    def set(self) -> None:
        """Make them so; inference mode is its own guard's."""
        for (read, write), value in zip(_SWITCHES, self.switches):
            if read() is not value and read() != value:
                write(value)
        for device, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        _stacked(
            self.functions, _get_current_function_mode_stack, torch._C._pop_torch_function_stack, torch._C._push_on_torch_function_stack
        )
        _stacked(self.dispatches, _get_current_dispatch_mode_stack, _pop_mode, torch._C._push_on_torch_dispatch_stack)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """They hold inside, beneath whatever watches; afterwards what held before."""
        before = Modes.now()
        inside = replace(self, functions=_under(self.functions, before.functions), dispatches=_under(self.dispatches, before.dispatches))
        with torch.inference_mode(self.inference) if self.inference != before.inference else nullcontext():
            inside.set()
            try:
                yield
            finally:
                before.set()


def _under(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*mine, *(mode for mode in theirs if not any(mode is each for each in mine)))


def _stacked(wanted: tuple[Any, ...], read: Callable[[], list], pop: Callable[[], Any], push: Callable[[Any], None]) -> None:
    """Put away the modes that are not wanted, from the top, and take out those that are."""
    held = read()
    alike = next((at for at, pair in enumerate(zip(held, wanted)) if pair[0] is not pair[1]), min(len(held), len(wanted)))
    for _ in held[alike:]:
        pop()
    for mode in wanted[alike:]:
        push(mode)


@dataclass(frozen=True)
class Chance:
    """The state of every source of chance that a forward may draw from."""

    processor: torch.Tensor
    cuda: tuple[torch.Tensor, ...]
    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> Chance:
        """The state as it is."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
        return cls(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state())  # noqa: NPY002  (what callers' forwards draw from)

    def set(self) -> None:
        """Draw on from here."""
        torch.set_rng_state(self.processor)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002

    def same(self, other: Chance) -> bool:
        """Whether nothing was drawn between the two."""
        tensors = zip((self.processor, *self.cuda), (other.processor, *other.cuda))
        alike = all(torch.equal(*pair) for pair in tensors) and self.python == other.python
        return alike and all(np.array_equal(*pair) for pair in zip(self.numpy, other.numpy))


def seed_all(seed: int) -> None:
    """Start every source of chance anew."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every source of chance starts from ``seed`` inside, and goes on afterwards as if nothing had been drawn."""
    before = Chance.now()
    seed_all(seed)
    try:
        yield
    finally:
        before.set()


class _Unblocked(TorchFunctionMode):
    """Passes over what turns gradients off; ``count`` is how many do."""

    count = 0
    inference = torch.inference_mode.__enter__, torch.inference_mode.__exit__

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is torch._C._set_grad_enabled and args == (False,) else func(*args, **(kwargs or {}))


@contextmanager
def unblocked() -> Iterator[None]:
    """Gradients reach what forwards compute without them: their own ``no_grad`` and ``inference_mode`` are passed over inside.

    A tower that is kept from training multiplies weights that count all the same.
    """
    way: Any = torch.inference_mode
    way.__enter__, way.__exit__ = lambda self: None, lambda self, *error: None
    _Unblocked.count += 1
    try:
        with _Unblocked():
            yield
    finally:
        _Unblocked.count -= 1
        if _Unblocked.count == 0:  # ranks may be threads
            way.__enter__, way.__exit__ = _Unblocked.inference


class _Plain:
    """How many forwards run that want torch's own short cuts left out, and what stood there before the first."""

    count = 0
    fast = True
    device: property | None = None


def _placed() -> None:
    """Transformers' models name the device of their first parameter: where that is not loaded yet, what a forward makes there is lost on ``meta``."""
    if (utils := sys.modules.get("transformers.modeling_utils")) is None:
        return
    plain = _Plain.device = utils.PreTrainedModel.device

    def device(self: nn.Module) -> torch.device:
        found = plain.__get__(self)
        tensors = itertools.chain(self.buffers(), self.parameters())
        return found if found.type != "meta" else next((each.device for each in tensors if each.device.type != "meta"), torch.device("cpu"))

    utils.PreTrainedModel.device = property(device)


def _unplaced() -> None:
    if _Plain.device is not None:
        sys.modules["transformers.modeling_utils"].PreTrainedModel.device = _Plain.device
        _Plain.device = None


@contextmanager
def uncut(module: nn.Module, *, restored: bool = True) -> Iterator[None]:
    """Every layer is really called inside: no compiler's code for the module, no fast path that multiplies weights without their layers.

    What forwards keep on their parts is afterwards what it was before, unless not ``restored``: a loader may do its last steps on first use.
    A forward that hooks itself up on first use keeps the note that it has: it would hook itself up again.
    """
    before, hooked = (kept(module), hooks(module)) if restored else ({}, 0)
    compiled = {part: vars(part)["_compiled_call_impl"] for part in module.modules() if vars(part).get("_compiled_call_impl") is not None}
    wrapped = {part: vars(part)["forward"] for part in module.modules() if "_orig_mod" in part._modules and "forward" in vars(part)}
    if _Plain.count == 0:
        _Plain.fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        _placed()
    _Plain.count += 1
    for part in compiled:
        vars(part)["_compiled_call_impl"] = None
    for part in wrapped:
        vars(part)["forward"] = part._modules["_orig_mod"]
    try:
        yield
    finally:
        for part, implementation in compiled.items():
            vars(part)["_compiled_call_impl"] = implementation
        for part, forward in wrapped.items():
            vars(part)["forward"] = forward
        _Plain.count -= 1
        if _Plain.count == 0:
            torch.backends.mha.set_fastpath_enabled(_Plain.fast)
            _unplaced()
        if restored:
            restore(module, before, added=hooks(module) <= hooked)
