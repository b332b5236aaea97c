"""Blocks computed twice give the same losses to the bit, keep less, and are left as they were."""

import pytest
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.loop import train
from modicum.train.objectives import next_token
from modicum.train.recomputed import recomputed
from modicum.train.trained import trained


def rows(count=4, tokens=12):
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 100, (1, tokens), generator=draw)} for _ in range(count)]


@pytest.mark.parametrize("option", ["lora rank=2", "fish keep=0.05", "ia3"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_losses_and_what_is_learnt_are_the_same_to_the_bit(option, name):
    found = []
    for recompute in (False, True):
        module, _ = zoo.build(name)
        with trained(module, option, total=3) as t:
            losses = train(module, t, rows(), Loop(steps=3, batch=2, recompute=recompute))
            found.append((losses, [parameter.detach().clone() for parameter in t.parameters()]))
    assert found[0][0] == found[1][0] and all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1]))


def test_less_is_kept_and_nothing_is_left_behind():
    module, _ = zoo.build("llama")
    before = {name: dict(part.__dict__) for name, part in module.named_modules()}

    def kept():
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.setdefault(x.data_ptr(), x), lambda x: x):
            loss, _ = next_token(module, rows(1)[0])
        del loss
        return sum(x.nbytes for x in seen.values())

    with trained(module, "lora rank=2"):
        whole = kept()
        with recomputed(module):
            assert kept() < whole / 2
    assert {name: dict(part.__dict__) for name, part in module.named_modules()} == before


def test_what_cannot_be_is_told_in_words():
    with pytest.raises(ModelError, match="repeated blocks"), recomputed(torch.nn.Linear(2, 2)):
        pass
    module, _ = zoo.build("llama")
    with trained(module, "prompt tokens=2") as t, pytest.raises(SettingError, match="recompute: must be off"):
        train(module, t, rows(), Loop(steps=1, recompute=True))
