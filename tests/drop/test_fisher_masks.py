"""Fisher masks: the score is what the loss feels of a mask, and what is felt least goes."""

import pytest
import torch
from torch import nn

import modicum
from modicum.core.errors import SettingError
from modicum.drop import FisherMasks, Slimsam, Taylor
from modicum.drop._masks import mask_gradients
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.coupling import coupled_cuts
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


@pytest.fixture(scope="module")
def llama():
    module, batches = zoo.build("llama")
    model = open_model(module)
    script = rehearse(model, batches[0])
    return module, model, script, batches, coupled_cuts(model, script, batches[0])


def test_gradients_of_masks_are_those_of_masks(llama):
    module, model, script, batches, sites = llama
    found = mask_gradients(model, script, batches[:1], sites, seed=0)
    site = next(site for site in sites if site.name.endswith(":heads"))
    consumer = module.get_submodule(site.axes[-1].unit.removesuffix(".weight"))
    for number, row in enumerate(batches[0]["input_ids"]):
        mask = torch.ones(consumer.in_features, requires_grad=True)
        hook = consumer.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask,))
        logits = module(input_ids=row[None]).logits[0]
        nn.functional.cross_entropy(logits[:-1], row[1:]).backward()
        hook.remove()
        wanted = torch.stack([mask.grad[list(group)].sum() for group in site.axes[-1].groups])
        torch.testing.assert_close(found[site.name][number], wanted, rtol=1e-3, atol=1e-6)
    module.zero_grad()


@pytest.mark.parametrize("method", [FisherMasks, Taylor, Slimsam])
def test_a_group_that_nothing_feels_goes_first_and_everything_kept_changes_nothing(method, llama):
    module, _, _, batches, _ = llama
    weight = module.model.layers[2].mlp.down_proj.weight
    before = weight.detach().clone()
    try:
        weight.data[:, :5] = 0
        model = open_model(module)
        script = rehearse(model, batches[0])
        change = method(keep=0.97).reshape(model, script, batches, SpillPool(None))
        assert not change.forms["model.layers.2.mlp.down_proj.weight"].columns[:5].any()
        assert not method(keep=1.0).reshape(model, script, batches, SpillPool(None)).forms
    finally:
        weight.data.copy_(before)


def test_an_encoder_without_labels_is_cut_and_few_groups_leave_one():
    module, batches = zoo.build("vit")
    receipt = modicum.fit(module, data=batches, method="fisher_masks keep=0", target="modicum", allow_broken=True).receipt
    assert any("keeps 1 of" in event for event in receipt["events"])
    with pytest.raises(SettingError, match=r"fisher_masks\.sequences"):
        FisherMasks(sequences=0)
