"""CLR: a task is a small map for each channel of a frozen model, and a layer of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.learn.learner import Learner, Learning, of_head
from modicum.learn.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Clr(Learner):
    """The base stays as it is; a task has channel maps of its own (``modicum explain clr``) and its own last layer: old answers stay the same bits.

    *Needs and cost:* ``channels · kernel²`` numbers per convolution and task. *Reduces to* a linear probe with maps that stay the identity.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="CLR: Channel-wise Lightweight Reprogramming for Continual Learning",
        arxiv="2307.11386",
        year=2023,
        authors="Yunhao Ge and Yuecheng Li and Shuo Ni and Jiaping Zhao and Ming-Hsuan Yang and Laurent Itti",
    )
    apart: ClassVar[bool] = True

    kernel: int = param(3, "side of a channel's map", choices=(1, 3, 5, 7))

    @override
    def learn(self, learning: Learning, task: Task) -> None:
        plan = {"*": f"clr kernel={self.kernel}", **of_head(learning.module, task)}
        learning.give(task, self.fitted(learning.module, plan, learning, task))
