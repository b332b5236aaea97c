"""AdamW without a schedule: it learns at every length, what is kept goes on to the bit, and what moves its places is refused."""

import pytest
import torch

from modicum.core.errors import SettingError
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.loop import train
from modicum.train.schedule_free import ScheduleFree
from modicum.train.trained import trained

ROWS = [{"input_ids": torch.randint(3, 100, (1, 12), generator=torch.Generator().manual_seed(at))} for at in range(6)]


def test_the_average_of_what_steps_led_to_is_what_a_naive_twin_has():
    """By its own definition: z goes down the slope at y, x is the weighted mean of all z, y lies between."""
    target, beta, rate = torch.tensor([1.0, -2.0]), 0.9, 0.1
    learnt = torch.nn.Parameter(torch.zeros(2))
    optimizer = ScheduleFree([learnt], lr=rate)
    z, x, squares = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    for step in range(1, 200):
        y = (1 - beta) * z + beta * x
        slope = 2 * (y - target)
        squares = 0.999 * squares + 0.001 * slope**2
        z = z - rate * slope / ((squares / (1 - 0.999**step)).sqrt() + 1e-8)
        x = x + (z - x) / step
        (learnt - target).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.settle()
    torch.testing.assert_close(learnt.detach(), x, rtol=1e-4, atol=1e-4)
    assert float((x - target).abs().max()) < 0.2


def test_a_training_goes_on_to_the_last_bit(tmp_path):
    def learnt(steps, keep=None, stop=None):
        module, _ = zoo.build("llama")
        with trained(module, "lora rank=2", total=steps) as t:
            losses = train(module, t, ROWS[:stop], Loop(steps=steps, batch=2, schedule="free", every=2), keep=keep)
            return losses, [parameter.detach().clone() for parameter in t.parameters()]

    whole = learnt(4)
    learnt(4, tmp_path)
    again = learnt(4, tmp_path)
    assert again[0] == whole[0] and all(torch.equal(one, other) for one, other in zip(whole[1], again[1]))
    assert whole[0][-1] < whole[0][0]


@pytest.mark.parametrize("option", ["fish keep=0.05", "full | lisa layers=1", "adalora rank=2"])
def test_what_moves_on_the_way_is_refused(option):
    module, _ = zoo.build("llama")
    with trained(module, option, total=2) as t, pytest.raises(SettingError, match="schedule: must be cosine"):
        train(module, t, ROWS, Loop(steps=2, schedule="free"))
