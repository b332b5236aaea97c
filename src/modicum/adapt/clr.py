"""CLR: every channel of a frozen convolution's output is read anew by a small map of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import override

from modicum.adapt._added import widths
from modicum.core.aside import Aside, Call, Spot
from modicum.core.errors import ModelError
from modicum.core.method import Paper
from modicum.core.parametrization import State
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Clr(Aside):
    """Behind each convolution stands one ``kernel × kernel`` map per channel, the identity at first.

    ``y[c] * map[c]``: channels do not meet, so a task costs ``channels · kernel²`` numbers per layer.

    *Shapes:* map (channels, kernel, kernel) behind a convolution over two axes, (width,) behind a part of a block without convolutions.

    *Needs and cost:* no statistics; as many multiplications per place as a map has numbers. No weight can hold it.

    *Reduces to:* the base with maps that are the identity, where training begins.

    *Raises:* ``ModelError`` for a model without convolutions and blocks.

    *Differences from the paper:* models without convolutions have factors in the place of maps.

    Example:
        >>> str(Clr())
        'clr'

    """

    paper: ClassVar[Paper | None] = Paper(
        title="CLR: Channel-wise Lightweight Reprogramming for Continual Learning",
        arxiv="2307.11386",
        year=2023,
        authors="Yunhao Ge and Yuecheng Li and Shuo Ni and Jiaping Zhao and Ming-Hsuan Yang and Laurent Itti",
    )
    rate: ClassVar[float] = 1e-1

    kernel: int = param(3, "side of a channel's map, odd", choices=(1, 3, 5, 7))

    @override
    def places(self, root: nn.Module) -> list[str]:
        found = [name for name, module in root.named_modules() if isinstance(module, nn.Conv2d)] or list(widths(root))
        if not found:
            raise ModelError(f"{type(root).__name__}: must have convolutions or blocks of layers for {self} to stand behind, has neither.")
        return found

    @override
    def begin(self, spot: Spot) -> State:
        """The identity."""
        if not isinstance(spot.module, nn.Conv2d):
            return State({"map": torch.ones(widths(spot.root)[spot.name])})
        maps = torch.zeros(spot.module.out_channels, self.kernel, self.kernel)
        maps[:, self.kernel // 2, self.kernel // 2] = 1
        return State({"map": maps})

    @override
    def around(self, state: State, call: Call) -> Any:
        """Each channel by its own map."""
        found, maps = call.plain(), state["map"]
        stream = found[0] if isinstance(found, tuple) else found
        if maps.ndim == 3:
            stream = F.conv2d(stream, maps[:, None].to(stream.dtype), padding=self.kernel // 2, groups=len(maps))
        else:
            stream = stream * maps.to(stream.dtype)
        return (stream, *found[1:]) if isinstance(found, tuple) else stream
