"""Visual prompt tuning's claim: rows behind a stream of patches alone make a frozen model fit, and are no part of what it gives."""

import pytest
import torch

from modicum.core.errors import ModelError
from modicum.delta import Delta
from modicum.testing import zoo
from modicum.train.changed import changed
from modicum.train.trained import trained


@pytest.mark.parametrize("deep", [False, True])
def test_rows_learn_and_answers_keep_their_shape(deep, tmp_path):
    torch.manual_seed(0)
    model, batches = zoo.build("vit")
    model.eval()
    before = model(**batches[0]).logits.detach()
    wanted = torch.arange(len(before)) % before.shape[1]
    loss = lambda: torch.nn.functional.cross_entropy(model(**batches[0]).logits, wanted)
    with trained(model, f"vpt tokens=3 deep={str(deep).lower()}") as t:
        assert t.count == 3 * model.config.hidden_size * (model.config.num_hidden_layers if deep else 1)
        optimizer, losses = torch.optim.Adam(t.parameters(), lr=0.05), []
        for _ in range(30):
            losses.append(loss())
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        learnt = model(**batches[0]).logits.detach()
        t.delta().save(tmp_path / "delta")
    assert losses[-1] < losses[0] and learnt.shape == before.shape and torch.equal(model(**batches[0]).logits, before)
    with changed(model, Delta.load(tmp_path / "delta")):
        assert torch.equal(model(**batches[0]).logits, learnt)


def test_what_it_cannot_stand_in_is_told():
    model, _ = zoo.build("llama")
    with pytest.raises(ModelError, match="Use prompt or prefix"):
        trained(model, "vpt tokens=2")
    with pytest.raises(ModelError, match="must have blocks"):
        trained(torch.nn.Linear(2, 2), "vpt tokens=2")
    blocks = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()) for _ in range(2)]))
    with trained(blocks, "vpt tokens=2"), pytest.raises(ModelError, match="is given \\(3, 4\\)"):
        blocks[0][0](torch.ones(3, 4))
