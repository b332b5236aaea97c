"""Coupled cuts found by differentiation: fused, interleaved and grouped layouts alike."""

import pytest
import torch

from modicum.data.splits import call
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.coupling import adds_output, coupled_cuts, kept_rows
from modicum.sweep.outputs import output_tensor
from modicum.testing import zoo

HEADS = {"llama": 2, "qwen2": 2, "phi3": 2, "gpt2": 4, "gpt_neox": 4, "opt": 4, "bert": 4, "vit": 4}


@pytest.mark.parametrize("name", HEADS)
def test_every_block_has_heads_and_channels(name):
    module, batches = zoo.build(name)
    model = open_model(module)
    sites = coupled_cuts(model, rehearse(model, batches[0]), batches[0])
    groups = [len(site.axes[-1].groups) for site in sites]
    assert len(sites) == 2 * len(model.blocks)
    assert groups[0] == HEADS[name]
    assert groups[1] == sites[1].axes[-1].groups[-1][-1] + 1


@pytest.mark.parametrize("name", HEADS)
def test_rows_of_a_cut_group_matter_to_nothing_else(name):
    module, batches = zoo.build(name)
    model = open_model(module)
    sites = coupled_cuts(model, rehearse(model, batches[0]), batches[0])
    for site in sites[:2]:
        with torch.no_grad():
            consumer = site.axes[-1]
            gone = ~kept_rows(consumer, list(range(1, len(consumer.groups))), site.units[-1].shape[1])
            site.units[-1].matrix(dict(module.named_parameters())[consumer.unit])[:, gone] = 0
            without_columns = output_tensor(call(module, batches[0]))[0].clone()
            for unit, axis in list(zip(site.units, site.axes))[:-1]:
                rows = ~kept_rows(axis, list(range(1, len(axis.groups))), unit.shape[0])
                unit.matrix(dict(module.named_parameters())[unit.parameter])[rows] = 7.0
            without_rows = output_tensor(call(module, batches[0]))[0]
        torch.testing.assert_close(without_rows, without_columns, rtol=1e-4, atol=1e-5)


def test_a_norm_after_the_projection_forbids_folding():
    for name, expected in (("llama", True), ("gpt2", True), ("gemma2", False)):
        module, batches = zoo.build(name)
        model = open_model(module)
        script = rehearse(model, batches[0])
        block = script.blocks[0]
        last = [unit for stage in script.stages for unit in stage if script.block_of[unit] == block][-1]
        assert adds_output(model, script, batches[0], block, model.units[last].module) is expected
