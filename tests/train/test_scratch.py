"""Training from the start: within the budget to the byte, resumed with the same numbers, and what is written is what was trained."""

import json

import pytest
import torch
import torch.nn.functional as F
from tests.train.killed import Killed
from torch import nn

import modicum
from modicum.core.errors import BudgetError, DataError, ModelError, SettingError
from modicum.train import Loop

CONFIG = {
    "model_type": "llama", "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
FEW = {"tokenizer": "demo", "tokens": 24, "samples": 24, "test_samples": 8}
LOOP = Loop(steps=8, batch=4, every=3)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.mark.parametrize(
    "method", ["rigl every=2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("snip", "dsl every=2", "sltrain"))]
)
def test_the_files_fit_to_the_byte_and_reload_exactly(config, tmp_path, method):
    made = modicum.train(config, tmp_path / "out", size="160kB", method=method, loop=LOOP, **FEW)
    receipt, size = made.receipt, (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size == receipt["bytes"]["written"] <= 160_000
    assert size > (159_500 if "sltrain" not in method else 155_000), "as much as the budget allows"
    assert receipt["verified"]["largest weight difference"] == 0 and receipt["verified"]["largest difference of losses"] < 1e-6
    assert receipt["operations"]["dense"] > 0 and receipt["parameters"]["stored"] < receipt["parameters"]["dense"]
    again = modicum.load(tmp_path / "out")
    assert all(torch.equal(one, two) for one, two in zip(made.model.parameters(), again.parameters()))


@pytest.mark.slow
def test_shares_of_parameters_and_baselines(config, tmp_path):
    made = modicum.train(config, tmp_path / "out", params="75%", method="rigl every=2", baselines=True, loop=LOOP, **FEW)
    values, against = made.receipt["parameters"], made.receipt["against"]
    assert values["stored"] == int(0.75 * values["dense"])
    assert {"dense", "small, equal updates", "small, equal operations"} < against.keys()
    assert against["small model"]["parameters"] < values["dense"] and against["small model"]["updates"] > LOOP.steps
    low, high = against["dense"]["difference"]["interval"]
    assert low <= against["dense"]["difference"]["change"] <= high


@pytest.mark.parametrize(
    "method",
    ["mpo shared=true", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stable_rps", "widenet", "shapeshifter", "lapp"))],
)
def test_what_is_shared_is_stored_once_and_loads_plainly(config, tmp_path, method, capfd):
    from transformers import AutoModelForCausalLM

    made = modicum.train(config, tmp_path / "out", params="85%", method=method, loop=LOOP, **FEW)
    assert made.receipt["parameters"]["stored"] <= 0.85 * made.receipt["parameters"]["dense"]
    assert made.receipt["bytes"]["written"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    modicum.densify(tmp_path / "out", tmp_path / "plain")
    for folder in ("out", "plain"):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert all(torch.equal(one, two) for one, two in zip(made.model.parameters(), loaded.parameters())), folder
    assert "UNEXPECTED" not in "".join(capfd.readouterr())


SLOW = ("snip", "mpo shared=true", "shapeshifter", "lapp")


@pytest.mark.parametrize("method", ["rigl every=2", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_what_was_killed_goes_on_with_the_same_numbers(config, tmp_path, method):
    run = lambda name, **words: modicum.train(config, tmp_path / name, params="75%", method=method, loop=LOOP, **FEW, **words)
    whole = run("whole").receipt
    with pytest.raises(KeyboardInterrupt):
        run("killed", progress=Killed(5))
    assert run("killed").receipt["losses"] == whole["losses"]
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["rigl", "sr_ste", "wgsef"])
def test_weights_that_are_kept_whole_take_no_mask(config, tmp_path, method):
    receipt = modicum.train(config, tmp_path / "out", size="1MB", method=method, loop=Loop(steps=1, batch=2), **FEW).receipt
    assert receipt["bytes"]["written"] == receipt["bytes"]["dense"]


def test_what_a_target_cannot_hold_is_told(config, tmp_path):
    receipt = modicum.train(
        config, tmp_path / "out", target="transformers", method="lsq bits=3", loop=Loop(steps=1, batch=2), **FEW
    ).receipt
    assert "14 of 14 weights are written whole" in receipt["notes"][-1] and receipt["bytes"]["written"] == receipt["bytes"]["dense"]


def test_inputs_that_cannot_be_rounded_are_told_before_training(config, tmp_path):
    config.write_text(json.dumps(CONFIG | {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}))
    with pytest.raises(SettingError, match="is of kind expert. Have it leave inputs as they are"):
        modicum.train(config, tmp_path / "out", method="bitnet", loop=LOOP, **FEW)
    assert not list(tmp_path.glob("out*"))


def test_another_config_of_the_same_name_and_size_begins_anew(config, tmp_path):
    run = lambda **words: modicum.train(config, tmp_path / "out", params="80%", loop=LOOP, **FEW, **words)
    with pytest.raises(KeyboardInterrupt):
        run(progress=Killed(5))
    config.write_text(json.dumps(CONFIG | {"hidden_act": "relu"}))
    begun = Killed(LOOP.steps)
    run(progress=begun)
    assert begun.left == 0, "all updates were done"


@pytest.mark.slow
def test_auto_races_what_fits_and_says_so(config, tmp_path):
    receipt = modicum.train(config, tmp_path / "out", size="160kB", method="auto", loop=LOOP, **FEW).receipt
    first, *_, last = receipt["race"]["rounds"]
    assert receipt["method"] == receipt["race"]["chosen"] in last["lost"] and len(first["lost"]) > len(last["lost"])
    assert "takes at least" in receipt["race"]["left out"]["dense"] and receipt["bytes"]["written"] <= 160_000


class Net(nn.Module):
    """A net with statistics that are no parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.first(x))))


def rows(count=60):
    draw = torch.Generator().manual_seed(0)
    for _ in range(count):
        x = torch.randn(4, 16, generator=draw)
        yield {"x": x, "labels": x[:, :4].argmax(1)}


def classes(module, batch):
    logits = module(batch["x"])
    return F.cross_entropy(logits, batch["labels"], reduction="none"), len(logits)


def test_any_module_with_an_objective(tmp_path):
    torch.manual_seed(0)
    net, batches = Net(), [(row["x"],) for row in rows()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    objective = lambda module, batch: (F.cross_entropy(module(batch[0]), batch[0][:, :4].argmax(1), reduction="none"), len(batch[0]))
    run = lambda name, **words: modicum.train(
        net,
        tmp_path / name,
        params="60%",
        method="rigl every=5",
        data=batches,
        objective=objective,
        loop=Loop(steps=60, batch=16, rate=0.02),
        **words,
    )
    made = run("out")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "the caller's module stays as it is"
    assert made.receipt["losses"][-1] < 0.8 * made.receipt["losses"][0]
    again = modicum.load(tmp_path / "out", into=Net())
    x = torch.randn(5, 16)
    assert torch.equal(made.model(x), again(x)) and not torch.equal(again.norm.running_mean, torch.zeros(32))
    with pytest.raises(KeyboardInterrupt):
        run("killed", progress=Killed(55))
    assert torch.equal(run("killed").model(x), made.model(x)), "statistics of batches are kept too"


def test_batches_with_labels_and_a_number_for_all(tmp_path):
    """The module is given what the objective gives it; what is written is held against that."""
    data = [(torch.randn(4, 16), torch.randint(0, 4, (4,))) for _ in range(6)]
    objective = lambda module, batch: (F.cross_entropy(module(batch[0]), batch[1], reduction="none"), len(batch[0]))
    made = modicum.train(Net(), tmp_path / "out", data=data, objective=objective, method="rigl keep=0.6", loop=Loop(steps=2, batch=4))
    assert made.receipt["test"]["tokens"] > 0 and (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "objective, said",
    [
        (lambda module, batch: module(batch[0]).sum(), "gives Tensor"),
        (lambda module, batch: (module(batch[0]).sum(1), 1.5), "gives Tensor and float"),
        (lambda module, batch: (module(batch[0]).detach().sum(1), 1), "gives one without"),
        (lambda module, batch: (module(batch[0]).sum(1), 0), "must have a token to learn"),
        (lambda module, batch: (module(batch[0] @ batch[0]).sum(1), 1), "raises RuntimeError"),
        (lambda module, batch: (module(batch[0]).sum(1), -3), "number of tokens of at least 1 .* gives -3"),
        (lambda module, batch: (module(batch[0]).sum(1), True), "gives Tensor and bool"),
        (lambda module, batch: (module(batch[0]).mean(), 8), "of 1 row gives one number for all"),
        (lambda module, batch: (module(batch[0]).sum(1).repeat(2), 1), r"of 1 row gives a tensor of the shape \[2\]"),
        (lambda module, batch: (module(batch[0]), 1), r"of 1 row gives a tensor of the shape \[1, 4\]"),
        (lambda module, batch: (module(batch[0]).mean().reshape(1), 1), r"of 2 rows gives a tensor of the shape \[1\]"),
    ],
)
def test_an_objective_that_cannot_be_learnt_by_is_told_before_training(tmp_path, objective, said):
    data = [(torch.randn(4, 16),) for _ in range(6)]
    with pytest.raises((DataError, SettingError), match=said):
        modicum.train(Net(), tmp_path / "out", data=data, objective=objective, method="rigl keep=0.6", loop=Loop(steps=1, batch=4))
    assert not list(tmp_path.glob("out*"))


def test_another_objective_begins_anew(tmp_path):
    torch.manual_seed(0)
    net, data = Net(), [(torch.randn(4, 16),) for _ in range(6)]
    one = lambda module, batch: (module(batch[0]).square().sum(1), len(batch[0]))
    two = lambda module, batch: (module(batch[0]).square().sum(1) * 2, len(batch[0]))
    run = lambda objective, lives: modicum.train(
        net, tmp_path / "out", data=data, objective=objective, method="rigl", loop=Loop(steps=4, batch=4, every=1), progress=Killed(lives)
    )
    for objective in (one, two):
        with pytest.raises(KeyboardInterrupt):
            run(objective, 2)
    run(two, 2)


def test_a_model_that_sees_what_it_is_to_tell_is_refused(config, tmp_path):
    path = tmp_path / "bert.json"
    path.write_text(json.dumps(CONFIG | {"model_type": "bert"}))
    with pytest.raises(ModelError, match="must be causal, but a later token changes"):
        modicum.train(path, tmp_path / "out", method="rigl", loop=LOOP, **FEW)
    path.write_text(json.dumps(CONFIG | {"model_type": "bert", "is_decoder": True}))
    modicum.train(path, tmp_path / "out", method="rigl", loop=Loop(steps=1, batch=2), **FEW)


def test_what_a_config_tells_of_quantized_weights_is_left_out(config, tmp_path):
    """They are not read, so training does not end in a refusal of them."""
    config.write_text(json.dumps(CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    made = modicum.train(config, tmp_path / "out", method="rigl", loop=Loop(steps=1, batch=2), **FEW)
    assert any("quantized weights, which are not read" in note for note in made.receipt["notes"])


@pytest.mark.parametrize(
    "words, error, said",
    [
        ({"method": "rigl keep=0.001"}, SettingError, "must leave at least one weight per row"),
        ({"size": "20kB"}, BudgetError, "takes at least"),
        ({"size": "20kB", "method": "auto"}, BudgetError, "no method meets it"),
        ({"method": "auto"}, SettingError, "auto needs a budget"),
        ({"method": "lora"}, SettingError, "must be one of those that train a small model"),
        ({"tokenizer": None}, DataError, "must hold a tokenizer"),
        ({"tokens": 65}, SettingError, "at most the 64"),
        ({"tokens": 1}, SettingError, "2 at least, got 1"),
        ({"target": "gguf"}, SettingError, "must be modicum or transformers"),
        ({"budget": modicum.Budget(loss=0.1)}, BudgetError, "loss: a training is held to"),
    ],
)
def test_bad_input_is_told_in_a_sentence_and_nothing_is_written(config, tmp_path, words, error, said):
    with pytest.raises(error, match=said):
        modicum.train(config, tmp_path / "out", loop=LOOP, **{**FEW, **words})
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "spoilt, said",
    [
        ({"model_type": "nobody"}, "is not a config that Transformers knows"),
        ({"model_type": "vit"}, "must be the config of a causal language model"),
        ({"dtype": "float8_e4m3fn"}, "must be one that weights are trained in"),
        ({"num_hidden_layers": -1}, "cannot be run"),
        ({"hidden_size": 33}, "is not a config that Transformers knows"),
        ({"vocab_size": 100}, "must have a vocab_size of at least"),
    ],
)
def test_a_config_that_is_none_is_told(config, tmp_path, spoilt, said):
    config.write_text(json.dumps(CONFIG | spoilt))
    with pytest.raises((ModelError, DataError), match=said) as told:
        modicum.train(config, tmp_path / "out", loop=LOOP, **FEW)
    assert str(config) in str(told.value) and not list(tmp_path.glob("out*"))
