"""Transformers' Trainer trains what stands beside its model: its events, in its order, give what a plain loop gives."""

import pytest
import torch
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState

from modicum.testing import zoo
from modicum.train.callback import Callback
from modicum.train.trained import trained


class Args:
    """Of a trainer's arguments what is read."""

    max_grad_norm = 1.0


def rows():
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 12, (2, 10), generator=draw)} for _ in range(6)]


def loss_of(model, batch):
    return model(**batch, labels=batch["input_ids"]).loss


@pytest.mark.parametrize(
    "option", ["lora rank=2", "sorsa rank=2", "full | lisa layers=1 every=2", "adalora rank=1 first=2 every=1 warmup=0"]
)
def test_a_trainers_events_give_what_a_plain_loop_gives(option):
    found = []
    for events in (False, True):
        model, _ = zoo.build("llama")
        with trained(model, option, total=6) as t:
            optimizer = torch.optim.AdamW(t.parameters(), lr=0.01)
            handler = CallbackHandler([DefaultFlowCallback(), Callback(t)], model, None, optimizer, None)
            args, state, control = Args(), TrainerState(max_steps=6), TrainerControl()
            if events:
                handler.on_train_begin(args, state, control)
            losses = []
            for batch in rows():
                loss = loss_of(model, batch)
                loss.backward()
                losses.append(loss.item())
                if events:
                    handler.on_pre_optimizer_step(args, state, control)
                    optimizer.step()
                    handler.on_optimizer_step(args, state, control)
                    model.zero_grad()
                    continue
                if (penalty := t.penalty()) is not None:
                    penalty.backward()
                torch.nn.utils.clip_grad_norm_(t.parameters(), 1.0)
                optimizer.step()
                t.revise(optimizer)
                optimizer.zero_grad()
            found.append(losses)
    assert found[0] == found[1] and found[0][-1] != found[0][0]
