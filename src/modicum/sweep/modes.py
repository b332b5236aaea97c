"""What torch keeps per thread and a forward may have switched when it is suspended: modes that no other forward, and no caller, may meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Modes:
    """Grad mode, inference mode, autocast, default dtype and the encoder's fast path as they are at one moment."""

    grad: bool
    inference: bool
    dtype: torch.dtype
    cache: bool
    autocast: tuple[tuple[bool, torch.dtype], ...]
    fastpath: bool

    @classmethod
    def now(cls) -> Modes:
        """What is in force."""
        autocast = tuple((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _DEVICES)
        return cls(
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), torch.is_autocast_cache_enabled(), autocast,
            torch.backends.mha.get_fastpath_enabled(),
        )  # fmt: skip

    def enter(self) -> None:
        """Put all but inference mode, which nests, in force."""
        torch._C._set_grad_enabled(self.grad)
        if torch.get_default_dtype() != self.dtype:
            torch.set_default_dtype(self.dtype)
        torch.set_autocast_cache_enabled(self.cache)
        torch.backends.mha.set_fastpath_enabled(self.fastpath)
        for device, (enabled, dtype) in zip(_DEVICES, self.autocast):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


class Own:
    """The modes of one suspended forward, in force inside ``inside`` alone."""

    def __init__(self) -> None:
        # Torch's fast path for encoder layers calls none of their modules, and turns padded batches into nested tensors.
        self._modes = replace(Modes.now(), fastpath=False)
        self._guard: Any = None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The forward's modes; afterwards those of whoever resumed it."""
        outer = Modes.now()
        if self._guard is not None:  # inference mode can only be left by leaving what was entered last
            self._guard.__exit__(None, None, None)
            self._guard = None
        if self._modes != outer:
            self._modes.enter()
        try:
            yield
        finally:
            self._modes = Modes.now()
            if self._modes.inference != outer.inference:
                self._guard = torch.inference_mode(outer.inference)
                self._guard.__enter__()
            if self._modes != outer:
                outer.enter()


@contextmanager
def slow_path() -> Iterator[None]:
    """Encoder layers call their modules inside, as they do where forwards are suspended."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
