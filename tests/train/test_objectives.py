"""Losses: what is computed of the head alone is the module's own, and so are its gradients."""

import copy
import math

import pytest
import torch

from modicum.core.errors import DataError
from modicum.testing import zoo
from modicum.train import Loop, objectives
from modicum.train.loop import train
from modicum.train.objectives import next_token
from modicum.train.trained import trained


@pytest.mark.parametrize("name, lean", [("llama", True), ("qwen3_moe", True), ("gpt2", True), ("gemma2", False), ("mamba", True)])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_head_alone_gives_the_modules_own_loss(name, lean, labelled, monkeypatch):
    """Gemma 2 bends its logits after the head, which is found out; a few logits at a time give what all of them do."""
    monkeypatch.setattr(objectives, "_LOGITS", 2000)
    model, batches = zoo.build(name)
    batch = {"input_ids": batches[0]["input_ids"]}
    if labelled:
        batch["labels"] = batch["input_ids"].masked_fill(torch.arange(batch["input_ids"].shape[1]) < 5, -100)
    found = []
    for alone in (True, False):
        with trained(model, "lora rank=2") as t:
            for parameter in t.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            if alone:
                loss, count = next_token(model, batch)
                assert objectives._LEAN[model] is lean
            else:
                loss = objectives._whole(model, batch, objectives.targets(batch))
            (loss * torch.tensor([1.0, 2.0])).sum().backward()
            found.append([loss, *(parameter.grad for parameter in t.parameters())])
    assert count == (batch["input_ids"].shape[1] - (5 if labelled else 1)) * 2
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_what_stands_beside_the_whole_and_computes_with_logits_is_found_out():
    model, batches = zoo.build("llama")
    batch = {"input_ids": batches[0]["input_ids"]}
    before = next_token(model.requires_grad_(False), batch)[0]
    with trained(model, "levi rank=2", total=2) as t:
        assert torch.equal(next_token(model, batch)[0], objectives._whole(model, batch, batch["input_ids"][:, 1:]))
        next_token(model, batch)[0].sum().backward()
        assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in t.parameters())
    assert torch.equal(next_token(model, batch)[0], before) and objectives._LEAN[model]


def test_a_trained_head_computes_all():
    model, batches = zoo.build("llama")
    with trained(model, {"lm_head.weight": "lora rank=2"}) as t:
        loss, _ = next_token(model, {"input_ids": batches[0]["input_ids"]})
        loss.sum().backward()
        assert all(parameter.grad is not None for parameter in t.parameters()) and model not in objectives._LEAN


def test_classes_are_those_of_rows():
    model, x, y = torch.nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    losses, count = objectives.classes(model, (x, y))
    assert count == 5 and torch.equal(losses, torch.nn.functional.cross_entropy(model(x), y, reduction="none"))
    with pytest.raises(DataError, match="classes must be from 0 to 2, one is 3"):
        objectives.classes(model, (x, y + 1))
    with pytest.raises(DataError, match="one class per row"):
        objectives.classes(model, (x, torch.randn(5)))
    with pytest.raises(DataError, match="must have labels"):
        objectives.classes(model, {"input": x})


def pairs(count=6):
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        prompt = torch.randint(3, 100, (1, 4), generator=draw)
        row = {}
        for side, token in (("chosen", 7), ("rejected", 8)):
            ids = torch.cat([prompt, torch.full((1, 3), token)], 1)
            row |= {f"{side}_ids": ids, f"{side}_labels": ids.masked_fill(torch.arange(7) < 4, -100)}
        found.append(row)
    return found


def test_preferences_are_learnt_against_what_the_model_was():
    model, _ = zoo.build("llama")
    before = copy.deepcopy(model)
    rows = objectives.referred(model, pairs())
    losses, count = objectives.preference()(model, rows[0])
    assert count == 1 and float(losses.detach()) == pytest.approx(math.log(2), rel=1e-4), "nothing is preferred yet"
    with trained(model, "lora rank=2", total=30) as t:
        train(model, t, rows, Loop(steps=30, batch=6, rate=0.01), objective=objectives.preference(beta=0.5))
        kept, _ = objectives.preference(beta=0.5)(model, rows[0])
        asked, _ = objectives.preference(before, beta=0.5)(model, pairs()[0])
    assert float(kept.detach()) < 0.3 and float(asked.detach()) == pytest.approx(float(kept.detach()), rel=1e-3)
    with pytest.raises(DataError, match="chosen_reference must be in a batch"):
        objectives.preference()(model, pairs()[0])
    with pytest.raises(DataError, match="a batch of pairs must have"):
        objectives.preference()(model, {"input_ids": torch.ones(1, 4)})
