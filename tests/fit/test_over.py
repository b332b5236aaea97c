"""A delta over a compressed model: codes and masks stay, the result is read as the delta makes it, and the base comes back to the byte."""

import filecmp
import json

import pytest
import torch
import transformers

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.core.tensorfile import TensorFile
from modicum.delta import Delta
from modicum.fit import over
from modicum.forms import Base, Dense, LowRank, Sum
from modicum.models.open import open_model
from modicum.models.trainable import trainable
from modicum.testing import zoo

LAYER = "model.layers.1.mlp.down_proj.weight"
PLANS = {
    "codes": ("modicum", "nearest bits=4 group=32"),
    "mask": ("modicum", "magnitude keep=0.5"),
    "packed": ("transformers", "nearest bits=4 group=32"),
}


@pytest.fixture(scope="module", params=list(PLANS))
def case(request, tmp_path_factory):
    """A compressed model, a delta on two of its weights, of which one may be stored dense, and what the first must become."""
    folder = tmp_path_factory.mktemp(request.param)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    model = zoo.random_checkpoint(folder / "model", transformers.LlamaConfig(tie_word_embeddings=False, **sizes))
    data = [{"input_ids": torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(n))} for n in range(8)]
    target, method = PLANS[request.param]
    modicum.fit(model, method=method, target=target, data=data, out=folder / "base", allow_broken=True)
    with over.dense_beneath(folder / "base") as dense:
        opened = open_model(dense)
        units = trainable(opened.module)
        weights = {name: units[name].matrix(opened.weights.read(units[name].parameter)).clone() for name in (LAYER, "model.norm.weight")}
    chance = torch.Generator().manual_seed(0)
    draw = lambda *sides: 0.1 * torch.randn(*sides, generator=chance)
    forms = {name: Sum((Base(tuple(w.shape), w.dtype, name), LowRank(draw(len(w), 1), draw(1, w.shape[1])))) for name, w in weights.items()}
    return target, folder, Delta(forms).stamped(weights.__getitem__), weights


def read(directory, name):
    with over.dense_beneath(directory) as dense:
        opened = open_model(dense)
        unit = trainable(opened.module)[name]
        return unit.matrix(opened.weights.read(unit.parameter)).clone()


def test_codes_stay_the_weight_changes_and_the_base_comes_back(case, tmp_path):
    target, folder, delta, weights = case
    made = over.apply(folder / "base", [delta], tmp_path / "out", dequantize=target != "modicum")
    for name, before in weights.items():
        assert torch.equal(read(tmp_path / "out", name), delta.weight(name, before)) and not torch.equal(
            read(tmp_path / "out", name), before
        )
    with TensorFile(folder / "base" / "model.safetensors") as old, TensorFile(tmp_path / "out" / "model.safetensors") as new:
        stored = {key: f"{LAYER}:0.{key.rpartition(':')[2]}" for key in old.entries if key.startswith(f"{LAYER}:")}
        assert bool(stored) == (target == "modicum") and (stored or LAYER in new.entries)
        assert all(torch.equal(old.read(key), new.read(name)) for key, name in stored.items()), "codes and masks stay as they are"
    assert made.changed == tuple(sorted(weights)) and over.is_over(tmp_path / "out") and not over.is_over(folder / "base")
    over.revert(tmp_path / "out", tmp_path / "back")
    files = sorted(path.name for path in (folder / "base").iterdir() if path.name[0] != ".")
    assert files == sorted(path.name for path in (tmp_path / "back").iterdir() if path.name[0] != ".")
    assert all(filecmp.cmp(folder / "base" / file, tmp_path / "back" / file, shallow=False) for file in files)


def test_what_cannot_be_done_is_said_and_leaves_nothing(case, tmp_path):
    target, folder, delta, weights = case
    if target == "transformers":
        with pytest.raises(SettingError, match="in codes, to which nothing can be added there. Pass --dequantize"):
            over.apply(folder / "base", [delta], tmp_path / "out")
    else:
        whole = Delta({LAYER: Dense(weights[LAYER])})
        with pytest.raises(ModelError, match="must be a weight that a change can stand on"):
            over.apply(folder / "base", [whole], tmp_path / "out")
    with pytest.raises(ModelError, match="another weight than this base has"):
        other = Delta({LAYER: delta.forms[LAYER]}).stamped(lambda name: weights[name] + 1)
        over.apply(folder / "base", [other], tmp_path / "out", dequantize=True)
    with pytest.raises(ModelError, match="has no weight nothing"):
        over.apply(folder / "base", [Delta({"nothing": delta.forms[LAYER]})], tmp_path / "out", dequantize=True)
    assert not list(tmp_path.iterdir())


def test_what_is_not_kept_cannot_be_taken_off(case, tmp_path):
    target, folder, delta, _ = case
    made = over.apply(folder / "base", [delta], tmp_path / "out", dequantize=target != "modicum", reversible=False)
    assert made.displaced == 0 and not (tmp_path / "out" / "displaced.safetensors").exists()
    with pytest.raises(ModelError, match="does not hold what was displaced"):
        over.revert(tmp_path / "out", tmp_path / "back")


def test_a_base_that_changed_since_is_told(case, tmp_path):
    target, folder, delta, _ = case
    over.apply(folder / "base", [delta], tmp_path / "out", dequantize=target != "modicum")
    record = tmp_path / "out" / "applied.json"
    body = json.loads(record.read_text())
    body["files"]["model.safetensors"]["sha256"] = "0" * 64
    record.write_text(json.dumps(body))
    with pytest.raises(ModelError, match="must hold the base as it was"):
        over.revert(tmp_path / "out", tmp_path / "back")
    record.write_text(json.dumps(body | {"files": {"../x": {}}}))
    with pytest.raises(ModelError, match="must say what was applied"):
        over.revert(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists()
