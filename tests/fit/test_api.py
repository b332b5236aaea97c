"""``fit`` and ``load`` from Python, as the first page of the documentation uses them."""

import copy
import random
import re
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import modicum
from modicum.sweep.outputs import output_tensor
from modicum.testing import zoo

FAST = {"search_time": 0, "menu": "nearest bits=4,nearest bits=8", "harm": "error"}
# Of every family one.
MENU = (
    "nearest bits=2,nearest bits=8,gptq bits=3 sweeps=0 | eora rank=2,watersic rate=3,svd keep=0.5,sparsegpt keep=0.5,ziplm keep=0.5,"
    "replaceme count=1"
)


def outputs(module, batch):
    with torch.no_grad():
        return output_tensor(module(**batch) if isinstance(batch, dict) else module(*batch))[0].float()


def distance(module, other, batch):
    """Squared difference of the outputs, relative to those of the second."""
    return (outputs(module, batch) - outputs(other, batch)).square().mean() / outputs(other, batch).square().mean()


# A module of one's own


def test_a_module_and_batches_are_all_it_takes():
    model, batches = zoo.build("mlp")
    result = modicum.fit(model, "6bpw", data=batches, search_time=1)
    assert isinstance(result.model, zoo.Mlp) and result.model is not model
    assert result.receipt["bytes"]["actual"] <= result.receipt["bytes"]["allowed"] == 6 * result.source.parameters // 8
    for batch in batches:
        assert 0 < distance(result.model, model, batch) < 0.02


def test_a_temporary_output_lives_as_long_as_its_result():
    model, batches = zoo.build("mlp")
    result = modicum.fit(model, "6bpw", data=batches, **FAST)
    out = result.out
    assert (out / "receipt.json").exists() and result.model is not None
    del result
    assert not out.exists() and not out.parent.exists()


def test_a_causal_model_loads_with_transformers():
    model, batches = zoo.build("llama")
    result = modicum.fit(model, "9bpw", data=batches, **FAST)
    again = type(model).from_pretrained(result.out, dtype="auto").eval()
    assert_close(outputs(result.model, batches[0]), outputs(again, batches[0]), rtol=0, atol=0)


@pytest.mark.parametrize(
    "budget",
    [{"budget": "12bpw"}, {"budget": modicum.Budget(bpw=12.0)}, {"bpw": 12}, {"size": "215712B"}, {"budget": modicum.Budget(size=215712)}],
)
def test_a_budget_may_be_said_in_many_ways(budget):
    model, batches = zoo.build("llama")
    assert modicum.fit(model, data=batches, **budget, **FAST).receipt["bytes"]["allowed"] == 215712


@pytest.mark.parametrize(
    "menu", ["int4,int8", ["int4", "int8"], [modicum.Option.parse("gptq bits=4 group=64"), "int8"], ("gptq bits=4", "int8")]
)
def test_a_menu_may_be_said_in_many_ways(menu):
    model, batches = zoo.build("llama")
    told = modicum.fit(model, "8bpw", data=batches, menu=menu, dry_run=True).receipt["sites"][0]["options"]
    assert told == ["keep", "gptq bits=4 symmetric=true", "gptq bits=8 symmetric=true"]


@pytest.mark.parametrize("wrap", [lambda batches: iter(batches), lambda batches: tuple(batches), lambda batches: (b for b in batches)])
def test_batches_may_come_from_any_iterable(wrap):
    model, batches = zoo.build("mlp")
    assert modicum.fit(model, "8bpw", data=wrap(batches), **FAST).receipt["data"]["source"] == "batches"


def test_wrong_words_raise_what_python_programmers_expect():
    model, batches = zoo.build("mlp")
    for error, settings in (
        (modicum.BudgetError, {}),
        (modicum.BudgetError, {"budget": "6bpw", "bpw": 4}),
        (modicum.SettingError, {"budget": "6bpw", "target": "onnx"}),
        (modicum.DataError, {"budget": "6bpw", "data": 7}),
        (modicum.DataError, {"budget": "6bpw", "data": []}),
        (modicum.ModelError, {"budget": "6bpw", "target": "transformers"}),
    ):
        with pytest.raises(error) as caught:
            modicum.fit(model, **{"data": batches, **settings})
        assert isinstance(caught.value, ValueError)
    with pytest.raises(TypeError, match="colour"):
        modicum.fit(model, "6bpw", data=batches, colour="red")


# Clean hands


class Marked(nn.Module):
    """A user's module with everything that could be disturbed."""

    def __init__(self):
        super().__init__()
        self.body, _ = zoo.build("llama")
        self.seen = 0

    def forward(self, input_ids):
        self.seen += 1
        return self.body(input_ids=input_ids).logits


def hooks(module):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return [(name, kind, dict(getattr(part, kind))) for name, part in module.named_modules() for kind in kinds]


def attributes(module):
    return [(name, {key: id(value) for key, value in vars(part).items() if key != "seen"}) for name, part in module.named_modules()]


@pytest.mark.parametrize(
    "how",
    [{"bpw": 6, "search_time": 0.5, "menu": MENU}, {"method": "wanda keep=0.5"}, {"method": "blocks count=1"}],
    ids=["budget", "method", "drop"],
)
@pytest.mark.parametrize("name", ["llama", "cnn", "marked"])
def test_the_callers_module_and_randomness_are_untouched(name, how):
    if "blocks" in str(how) and name == "cnn":
        pytest.skip("has no blocks")
    model, batches = (Marked(), zoo.build("llama")[1]) if name == "marked" else zoo.build(name)
    model.train()
    model.register_forward_hook(lambda *_: None)
    next(model.parameters()).requires_grad_(False)
    values, given = copy.deepcopy(model.state_dict()), copy.deepcopy(batches)
    held = {key: value.data_ptr() for key, value in model.state_dict().items()}
    grads = {key: (parameter.requires_grad, parameter.grad) for key, parameter in model.named_parameters()}
    before = attributes(model), hooks(model), [part.training for part in model.modules()]
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    flags = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    modicum.fit(model, data=batches, target="modicum", **how)

    assert (attributes(model), hooks(model), [part.training for part in model.modules()]) == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    assert {key: value.data_ptr() for key, value in model.state_dict().items()} == held
    assert {key: (parameter.requires_grad, parameter.grad) for key, parameter in model.named_parameters()} == grads
    assert all(torch.equal(one[key], other[key]) for one, other in zip(batches, given) for key in one)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2]
    now = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    assert now == flags


def test_the_callers_module_outlives_a_run_that_fails(monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    model, batches = zoo.build("llama")
    values, before = copy.deepcopy(model.state_dict()), attributes(model)
    monkeypatch.setattr("modicum.quantize.gptq.Gptq.quantize", fail)
    with pytest.raises(KeyboardInterrupt):
        modicum.fit(model, "8bpw", data=batches)
    assert attributes(model) == before
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


# Batches


def test_batches_of_tuples_and_of_bare_tensors():
    model, batches = zoo.build("mlp")
    results = [modicum.fit(model, "6bpw", data=data, **FAST) for data in (batches, [(b["x"],) for b in batches], [b["x"] for b in batches])]
    named, tuples, bare = ((result.out / "model.safetensors").read_bytes() for result in results)
    assert tuples == bare
    assert len(named) == len(tuples)


class Two(nn.Module):
    """Two inputs, the second optional by position."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 8)

    def forward(self, x, y):
        return self.head(torch.relu(self.left(x) + self.right(y)))


def test_batches_of_several_positional_arguments():
    torch.manual_seed(0)
    model = Two()
    batches = [(torch.randn(16, 64), torch.randn(16, 64)) for _ in range(5)]
    result = modicum.fit(model, "9bpw", data=batches, **FAST)
    for batch in batches:
        assert distance(result.model, model, batch) < 0.02


def test_padding_does_not_change_what_is_measured():
    """Rows of padding, which the mask leaves out, give the same weights whatever stands in them."""
    model, batches = zoo.build("llama")
    ids = torch.cat([batch["input_ids"][:, :17] for batch in batches])
    made = []
    for filler in (3, 200):
        data = []
        for row in ids.split(1):
            padded = torch.cat([row, torch.full((1, 7), filler)], dim=1)
            data.append({"input_ids": padded, "attention_mask": (torch.arange(24) < 17).long()[None]})
        result = modicum.fit(model, method="gptq bits=4 group=64 sweeps=0", data=data)
        made.append((result.out / "model.safetensors").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("name", ["bert", "t5", "clip"])
def test_batches_with_padding_masks(name):
    model, batches = zoo.build(name)
    result = modicum.fit(model, "9bpw", data=batches, **FAST)
    assert result.receipt["quality"]["mean"] < 0.1
    assert outputs(result.model, batches[0]).isfinite().all()


# Loading


@pytest.mark.parametrize("name, target", [("llama", "transformers"), ("llama", "modicum"), ("gpt2", "modicum"), ("t5", "modicum")])
def test_load_gives_the_model_of_the_result(tmp_path, name, target):
    model, batches = zoo.build(name)
    result = modicum.fit(model, "9bpw", data=batches, out=tmp_path / "out", target=target, **FAST)
    loaded = modicum.load(tmp_path / "out")
    assert type(loaded) is type(model) and not loaded.training
    for batch in batches:
        assert torch.equal(outputs(loaded, batch), outputs(result.model, batch))
        assert distance(loaded, model, batch) < 0.3  # unrelated outputs would be near 2


def test_load_fills_a_module_of_ones_own(tmp_path):
    model, batches = zoo.build("cnn")
    result = modicum.fit(model, "9bpw", data=batches, out=tmp_path / "out", **FAST)
    loaded = modicum.load(tmp_path / "out", into=zoo.build("cnn", seed=1)[0])
    assert torch.equal(outputs(loaded, batches[0]), outputs(result.model, batches[0]))


def test_load_says_what_is_wrong(tmp_path):
    model, batches = zoo.build("cnn")
    modicum.fit(model, "9bpw", data=batches, out=tmp_path / "out", **FAST)
    with pytest.raises(modicum.ModelError):
        modicum.load(tmp_path / "nothing")
    with pytest.raises(modicum.ModelError):
        modicum.load(tmp_path / "out")  # a class of nobody's: into= is needed
    with pytest.raises(modicum.ModelError):
        modicum.load(tmp_path / "out", into=zoo.build("mlp")[0])
    (tmp_path / "out" / "modicum.json").write_text("{}")
    with pytest.raises(modicum.ModelError):
        modicum.load(tmp_path / "out", into=zoo.build("cnn")[0])


# What drops parts of the model

DROPS = ["flap keep=0.7", "blocks count=1", "replaceme count=1", "flap keep=0.8 | gptq bits=8 group=32"]


@pytest.mark.parametrize("method", DROPS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_models_with_parts_dropped_come_back_from_the_container(tmp_path, name, method):
    model, batches = zoo.build(name)
    result = modicum.fit(model, method=method, data=batches, out=tmp_path / "out", target="modicum")
    told, loaded = result.receipt["bytes"], modicum.load(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == told["actual"] == told["predicted"] < told["original"]
    assert result.receipt["verification"]["logits"]["largest"] < 1e-3
    for batch in batches:
        assert torch.equal(outputs(loaded, batch), outputs(result.model, batch))
        assert not torch.equal(outputs(loaded, batch), outputs(model, batch))
    blocks = [part for part in loaded.modules() if isinstance(part, nn.ModuleList)][0]
    assert len(blocks) == (3 if "flap" in method else 2)


@pytest.mark.parametrize("method", ["blocks count=1", "replaceme count=1", "blocks count=1 | gptq bits=8 group=32"])
def test_models_with_blocks_dropped_load_with_transformers(tmp_path, method):
    model, batches = zoo.build("llama")
    result = modicum.fit(model, method=method, data=batches, out=tmp_path / "out", target="transformers")
    loaded, report = type(model).from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.num_hidden_layers == len(loaded.model.layers) == 2
    assert_close(outputs(loaded.eval(), batches[0]), outputs(result.model, batches[0]), rtol=0, atol=0)
    generated = loaded.generate(batches[0]["input_ids"], max_new_tokens=4, do_sample=False)
    assert generated.shape == (2, 28)


def test_dropping_a_block_equals_dropping_it_by_hand(tmp_path):
    model, batches = zoo.build("llama")
    result = modicum.fit(model, method="blocks count=1", data=batches, out=tmp_path / "out", target="transformers")
    (event,) = [event for event in result.receipt["events"] if "dropped" in event]
    gone = int(event.split(" to ")[0].rpartition(".")[2])
    del model.model.layers[gone]
    assert_close(outputs(result.model, batches[0]), outputs(model, batches[0]))


def test_a_cut_is_refused_where_the_target_cannot_hold_it(tmp_path):
    model, batches = zoo.build("llama")
    with pytest.raises(modicum.SettingError, match=r"Pass --target modicum\."):
        modicum.fit(model, method="flap keep=0.7", data=batches, out=tmp_path / "out", target="transformers")
    assert not Path(tmp_path / "out").exists()


def test_gradients_stay_as_they_were_enabled():
    module, batches = zoo.build("mlp")
    modicum.fit(module, method="nearest bits=8", data=batches)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        modicum.fit(module, method="nearest bits=8", data=batches)
        assert not torch.is_grad_enabled()


def test_a_compiled_module_is_filled_beneath():
    model, batches = zoo.build("mlp")
    result = modicum.fit(model, method="nearest bits=8 group=0", data=batches)
    compiled = torch.compile(zoo.build("mlp")[0], backend="eager")
    filled = modicum.load(result.out, into=compiled)
    assert filled is compiled
    assert_close(outputs(filled, batches[0]), outputs(result.model, batches[0]))


@pytest.mark.parametrize(
    "slip, said",
    [
        ({"budget": 8}, "budget: must be a text or a Budget, got 8"),
        ({"method": ["gptq"]}, "method: must be a text or an Option"),
        ({"samples": 4.5}, "samples: must be a whole number, got 4.5"),
        ({"seed": "first"}, "seed: must be a whole number, got 'first'"),
        ({"keep": 3}, "keep: must be a list, got 3"),
        ({"out": 3}, "out: must be a text or a path, got 3"),
        ({"sed": 3}, "fit: has no setting 'sed'. Did you mean seed"),
        ({"output": lambda output: output["logits"]}, "output: the function must take what forward returns, Tensor; it raises"),
    ],
)
def test_slips_of_kind_and_name_are_told_before_any_work(slip, said):
    model, batches = zoo.build("mlp")
    with pytest.raises(modicum.SettingError, match=re.escape(said)):
        modicum.fit(model, **{"budget": None if "method" in slip else "6bpw", "data": batches, **slip})


def test_modules_and_batches_made_in_inference_mode_and_runs_within_it():
    with torch.inference_mode():
        model, batches = zoo.build("mlp")
        inside = modicum.fit(model, "12bpw", data=batches, search_time=0, menu="nearest bits=8")
        assert torch.is_inference_mode_enabled()
    outside = modicum.fit(model, "12bpw", data=batches, search_time=0, menu="nearest bits=8")
    assert inside.receipt["quality"] == outside.receipt["quality"] and all(value.is_inference() for value in model.parameters())


def test_a_default_device_of_the_callers_stays_theirs():
    model, batches = zoo.build("mlp")
    with torch.device("meta"):
        result = modicum.fit(model, method="nearest bits=8", data=batches)
        assert torch.get_default_device().type == "meta"
    assert result.receipt["quality"]["mean"] < 0.1
