"""Losses: what is computed of the head alone is the module's own, and so are its gradients."""

import pytest
import torch

from modicum.testing import zoo
from modicum.train import objectives
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


def test_a_trained_head_computes_all():
    model, batches = zoo.build("llama")
    with trained(model, {"lm_head.weight": "lora rank=2"}) as t:
        loss, _ = next_token(model, {"input_ids": batches[0]["input_ids"]})
        loss.sum().backward()
        assert all(parameter.grad is not None for parameter in t.parameters()) and model not in objectives._LEAN
