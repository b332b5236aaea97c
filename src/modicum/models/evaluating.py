"""A caller's module while it is looked at: in evaluation mode, and afterwards as it was."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(module: nn.Module | None) -> Iterator[None]:
    """Dropout and batch statistics off in a caller's module, nothing compiled while forwards stand still, and afterwards as it was.

    The caller's own inference mode, in which nothing can be differentiated, and default device are put away as long.
    """
    modes = {part: part.training for part in module.modules()} if module is not None else {}
    for part in modes:
        part.training = False
    try:
        with (
            torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext(),
            torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext(),
            torch.device("cpu") if torch.get_default_device().type != "cpu" else contextlib.nullcontext(),
        ):
            yield
    finally:
        for part, training in modes.items():
            part.training = training
