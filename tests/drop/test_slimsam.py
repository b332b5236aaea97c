"""SlimSAM's criterion: gradients of a disturbed output, with no labels."""

import torch

from modicum.drop import Slimsam
from modicum.drop._masks import mask_gradients
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.coupling import coupled_cuts
from modicum.testing import zoo


def test_labels_of_the_text_are_not_looked_at():
    module, batches = zoo.build("llama")
    model = open_model(module)
    script = rehearse(model, batches[0])
    sites = coupled_cuts(model, script, batches[0])[:1]
    one, other = (mask_gradients(model, script, batches[:1], sites, seed, drawn=Slimsam().drawn)[sites[0].name] for seed in (0, 1))
    assert one.shape == other.shape and not torch.equal(one, other)  # another disturbance
    assert torch.equal(one, mask_gradients(model, script, batches[:1], sites, 0, drawn=True)[sites[0].name])
    assert Slimsam().importance(torch.tensor([[1.0, -2.0], [-1.0, 2.0]])).tolist() == [1.0, 4.0]
