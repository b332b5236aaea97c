"""What Transformers' ``Trainer`` must be told at each update for it to train what ``modicum.trained`` has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers.trainer_callback import TrainerCallback

from modicum.train.trained import Trained


class Callback(TrainerCallback):
    """Keeps a ``Trainer`` and what is trained beside its model in step: penalties, clipping, revisions, and gradients let go.

    The trainer knows the parameters of its model alone, which ask for no gradient; so it is given an optimizer of those that are trained:

        with modicum.trained(model, "lora rank=8") as t:
            optimizer = torch.optim.AdamW(t.parameters(), lr=1e-3)
            Trainer(model, args, train_dataset=data, optimizers=(optimizer, None), callbacks=[Callback(t)]).train()
            t.delta().save("learnt")
    """

    def __init__(self, trained: Trained):
        self.trained = trained

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Schedules are told how many updates there will be."""
        self.trained.step = replace(self.trained.step, number=state.global_step, total=max(1, state.max_steps))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What methods add to the loss, and the largest norm that a gradient may have."""
        if (penalty := self.trained.penalty()) is not None:
            penalty.backward()
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Methods move what they train; gradients are let go, of which the model's own ``zero_grad`` knows nothing."""
        self.trained.revise(getattr(optimizer, "optimizer", optimizer))
        for parameter in self.trained.parameters():
            parameter.grad = None
