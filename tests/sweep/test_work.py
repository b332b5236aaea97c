"""Multiply-adds of a pass, held against torch's own counter and against counting by hand, and whose they are."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.work import counted
from modicum.testing import zoo


def judged(module, batch):
    """Half of what torch counts, which takes a multiplication and an addition for two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**batch) if isinstance(batch, dict) else module(*batch)
    return counter.get_total_flops() // 2


def work_of(module, batches):
    model = open_model(module)
    return model, rehearse(model, batches[0]).work


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_the_whole_is_what_torch_counts_one_by_one(name):
    module, batches = zoo.build(name)
    module.set_attn_implementation("eager")  # torch counts no fused attention of a processor
    _, work = work_of(module, batches)
    batch = {key: value[:1] for key, value in batches[0].items()}
    assert work.whole == judged(module, batch) == counted(lambda: module(**batch)) > 0


def test_fused_attention_counts_what_its_products_take():
    module, batches = zoo.build("llama")
    _, fused = work_of(module, batches)
    module.set_attn_implementation("eager")
    assert fused.whole == work_of(module, batches)[1].whole


class Mixed(nn.Module):
    """Layers of every kind, whose multiply-adds are told by hand below."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.down = nn.Conv1d(8, 6, 3, stride=2, groups=2)
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2)
        self.steps = nn.LSTM(4, 5, batch_first=True)
        self.gates = nn.GRU(5, 7, batch_first=True)
        self.bare = nn.Parameter(torch.randn(7, 9))
        self.last = nn.Linear(9, 3)

    def forward(self, ids):
        found = self.up(self.down(self.table(ids).transpose(1, 2))).transpose(1, 2)
        found = self.gates(self.steps(found)[0])[0]
        found = found @ self.bare
        return self.last(found @ found.transpose(1, 2) @ found)


def test_every_kind_of_layer_counts_what_it_takes_by_hand():
    module = Mixed().eval()
    _, work = work_of(module, [(torch.randint(50, (2, 17)),)])
    short, long = 8, 17  # positions after the first convolution, and after the second
    by_hand = {
        "down.weight": short * 6 * (8 // 2) * 3, "up.weight": short * 6 * 4 * 3, "steps.weight_ih_l0": long * 20 * 4,
        "steps.weight_hh_l0": long * 20 * 5, "gates.weight_ih_l0": long * 21 * 5, "gates.weight_hh_l0": long * 21 * 7,
        "last.weight": long * 9 * 3,
    }  # fmt: skip
    assert work.units == by_hand
    of_no_unit = long * 7 * 9 + 2 * long * long * 9  # a parameter of the whole model's own, and two products of what it gave
    assert work.whole == sum(by_hand.values()) + of_no_unit


def test_of_experts_only_those_that_tokens_are_routed_to_count():
    module, batches = zoo.build("qwen3_moe")
    model, work = work_of(module, batches)
    config, tokens = module.config, batches[0]["input_ids"].shape[1]
    experts = [unit for unit in model.units.values() if unit.kind == "expert"]
    layers = config.num_hidden_layers - len(config.mlp_only_layers)
    routed = tokens * config.num_experts_per_tok * layers * 3 * config.hidden_size * config.moe_intermediate_size
    assert sum(work.units[unit.name] for unit in experts) == routed
    assert routed < tokens * sum(unit.size for unit in experts)


def test_products_between_the_units_of_a_cut_are_the_attentions_own():
    from modicum.sweep.coupling import coupled_cuts

    module, batches = zoo.build("llama")
    model = open_model(module)
    script = rehearse(model, batches[0])
    found = script.work.between(coupled_cuts(model, script, batches[0]))
    config, tokens = module.config, batches[0]["input_ids"].shape[1]
    own = 2 * tokens * tokens * config.hidden_size
    assert found == {f"model.layers.{index}.self_attn.o_proj.weight": own for index in range(config.num_hidden_layers)}
