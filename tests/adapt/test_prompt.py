"""Prompt tuning's claim: rows before the inputs alone make a frozen model fit a text, and a fixed prompt is where it begins."""

import pytest
import torch

from modicum.core.errors import ModelError
from modicum.testing import zoo
from modicum.train import Loop
from modicum.train.loop import evaluate, train
from modicum.train.trained import trained


def rows():
    draw = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 12, (1, 16), generator=draw)} for _ in range(4)]


def test_it_begins_as_tokens_before_the_text_and_learns():
    model, _ = zoo.build("llama")
    model.eval()
    with trained(model, "prompt tokens=3", total=60) as t:
        (one,) = t.asides
        table = model.get_input_embeddings().weight
        ids = torch.stack([(table == row).all(1).nonzero()[0, 0] for row in one.state["rows"]])
        (row,) = rows()[:1]
        said = model(**row).logits
        assert t.count == 3 * table.shape[1]
        before = sum(loss for loss, _ in evaluate(model, rows()))
        train(model, t, rows(), Loop(steps=60, batch=4, rate=0.05))
        assert sum(loss for loss, _ in evaluate(model, rows())) < 0.9 * before
    torch.testing.assert_close(said, model(torch.cat([ids[None], row["input_ids"]], 1)).logits[:, 3:], rtol=1e-4, atol=1e-5)


def test_what_is_padded_counts_for_nothing():
    model, _ = zoo.build("llama")
    (row,) = rows()[:1]
    with trained(model, "prompt tokens=3"), torch.no_grad():
        alone = model(**row).logits
        ids = torch.nn.functional.pad(row["input_ids"], (0, 4))
        padded = model(input_ids=ids, attention_mask=(torch.arange(20) < 16).long()[None]).logits[:, :16]
    torch.testing.assert_close(alone, padded, rtol=1e-4, atol=1e-5)


def test_a_model_without_token_ids_is_told():
    with pytest.raises(ModelError, match="must take input_ids and inputs_embeds"):
        trained(torch.nn.Linear(4, 4), "prompt")
