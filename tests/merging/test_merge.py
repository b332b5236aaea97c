"""Checkpoints merged: files, inputs of every kind, kills, and what cannot be."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import modicum
from modicum.core.errors import DataError, ModelError, SettingError
from modicum.delta import Delta
from modicum.delta.applying import apply, base_weights
from modicum.delta.between import between
from modicum.forms import Base, LowRank, Sum
from modicum.merging import engine
from modicum.merging.job import Job, require_memory
from modicum.merging.merge import method_of
from modicum.merging.sources import Held
from modicum.models.located import DEMO
from modicum.models.open import open_model
from modicum.models.trainable import trainable
from modicum.testing import zoo


def checkpoint(folder, name="llama", seed=0, moved=0.0, **settings):
    """A tiny model in a folder, and moved from it where asked."""
    model = zoo.build(name)[0]
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += moved * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    model.save_pretrained(folder, **settings)
    return folder


@pytest.fixture
def three(tmp_path):
    return [
        checkpoint(tmp_path / name, seed=seed, moved=moved) for name, seed, moved in (("base", 0, 0), ("one", 1, 0.05), ("two", 2, 0.05))
    ]


def weights(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def test_files_are_the_bases_and_values_the_merge(three, tmp_path):
    base, one, two = three
    made = modicum.merge(base, [one, two], tmp_path / "out", method="average", weights=[1, 3])
    found, mean = weights(made.out), {name: (value + 3 * weights(two)[name]) / 4 for name, value in weights(one).items()}
    assert found.keys() == mean.keys() and all(torch.allclose(found[name], mean[name], atol=1e-6) for name in mean)
    receipt = json.loads((made.out / "receipt.json").read_text())
    assert receipt["verified"]["class"] == "LlamaForCausalLM" and {row["weight"] for row in receipt["models"]} == {1.0, 3.0}
    assert all(len(row["sha256"]) == 64 for row in receipt["models"]) and receipt["layers"][1]["relative_change"] > 0
    assert 0 <= receipt["layers"][1]["sign_agreement"] <= 1
    assert not list(tmp_path.glob("*.partial*"))
    (again := modicum.merge(base, [two, one], tmp_path / "again", method="average", weights=[3, 1], verify=False))
    assert again.receipt["sha256"] == receipt["sha256"], "the order does not count"


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt2", "t5"])
def test_every_layout_is_kept(name, tmp_path):
    base, one = checkpoint(tmp_path / "base", name), checkpoint(tmp_path / "one", name, 1, 0.05)
    made = modicum.merge(base, [one], tmp_path / "out", method="task_arithmetic", weights=[1.0])
    assert (made.out / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()


def test_shards_dtypes_and_ties(tmp_path):
    base = checkpoint(tmp_path / "base", max_shard_size="100KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    one = checkpoint(tmp_path / "one", moved=0.05)
    transformers.AutoModelForCausalLM.from_pretrained(one).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    made = modicum.merge(base, [tmp_path / "half"], tmp_path / "out", method="average", dtype="bfloat16")
    assert sorted(path.name for path in made.out.glob("*.safetensors")) == sorted(path.name for path in base.glob("*.safetensors"))
    found, wanted = weights(made.out), weights(tmp_path / "half")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert json.loads((made.out / "config.json").read_text()).get("dtype") == "bfloat16"


def test_a_tied_head_that_is_stored_is_found_where_it_is_not(tmp_path):
    model = zoo.build("llama")[0]
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    whole = weights(tmp_path / "tied")
    assert "lm_head.weight" not in whole
    shutil.copytree(tmp_path / "tied", tmp_path / "stored")
    save_file(
        {**whole, "lm_head.weight": whole["model.embed_tokens.weight"].clone()}, tmp_path / "stored/model.safetensors", {"format": "pt"}
    )
    made = modicum.merge(tmp_path / "stored", [tmp_path / "tied"], tmp_path / "out", method="average")
    assert torch.equal(weights(made.out)["lm_head.weight"], whole["model.embed_tokens.weight"])
    (tmp_path / "parted").mkdir()
    shutil.copy(tmp_path / "tied/config.json", tmp_path / "parted/config.json")
    save_file({**whole, "lm_head.weight": whole["model.embed_tokens.weight"] + 1}, tmp_path / "parted/model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="parted: holds the tensor lm_head.weight, which the base lacks"):
        modicum.merge(tmp_path / "tied", [tmp_path / "parted"], tmp_path / "lost", method="average")


def test_a_model_that_is_listed_twice_counts_twice(three, tmp_path):
    base, one, two = three
    thrice = modicum.merge(base, [one, one, two], tmp_path / "thrice", method="average", verify=False)
    once = modicum.merge(base, [one, two], tmp_path / "once", method="average", weights=[2, 1], verify=False)
    assert all(torch.allclose(value, weights(once.out)[name], atol=1e-6) for name, value in weights(thrice.out).items())
    assert len(thrice.receipt["models"]) == 3 and len({row["sha256"] for row in thrice.receipt["models"]}) == 2


SEEDED = "import modicum, sys; modicum.merge(*sys.argv[1:2], sys.argv[2:5], sys.argv[5], method='dare vote=true', verify=False)"


def test_no_hash_seed_and_no_order_counts(three, tmp_path):
    base, one, two = map(str, three)
    run = [sys.executable, "-c", SEEDED, base, two, one, one, str(tmp_path / "out")]
    subprocess.run(run, check=True, env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"})
    here = modicum.merge(base, [one, two, one], tmp_path / "here", method="dare vote=true", verify=False)
    assert here.receipt["sha256"] == json.loads((tmp_path / "out/receipt.json").read_text())["sha256"]


def test_deltas_and_adapters_are_models(three, tmp_path):
    base, one, _ = three
    between(one, base).save(tmp_path / "delta")
    model = open_model(base)
    name = next(name for name in trainable(model.module) if "down_proj" in name)
    shape = tuple(base_weights(model)(name).shape)
    draw = torch.Generator().manual_seed(3)
    product = LowRank(torch.randn(shape[0], 2, generator=draw), torch.randn(2, shape[1], generator=draw))
    thin = Delta({name: Sum((Base(shape, torch.float32, name), product))}).stamped(base_weights(model))
    thin.save(tmp_path / "thin")
    made = modicum.merge(base, [tmp_path / "delta", tmp_path / "thin"], tmp_path / "out", method="task_arithmetic")
    apply(base, [Delta.load(tmp_path / "delta"), thin], tmp_path / "applied")
    found, wanted = weights(made.out), weights(tmp_path / "applied")
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def test_an_adapter_of_peft_is_a_model(three, tmp_path):
    base, place = three[0], tmp_path / "adapter"
    place.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
    }
    (place / "adapter_config.json").write_text(json.dumps(config))
    name, draw = "model.layers.1.self_attn.q_proj", torch.Generator().manual_seed(0)
    rows, columns = weights(base)[f"{name}.weight"].shape
    a, b = torch.randn(2, columns, generator=draw), torch.randn(rows, 2, generator=draw)
    keys = (f"base_model.model.{name}.lora_{part}.weight" for part in "AB")
    save_file(dict(zip(keys, (a, b))), place / "adapter_model.safetensors")
    made = modicum.merge(base, [place], tmp_path / "out", method="task_arithmetic", weights=[0.5])
    for key, value in weights(made.out).items():
        change = 0.5 * 3 * b @ a if key == f"{name}.weight" else 0
        assert torch.allclose(value, weights(base)[key] + change, atol=1e-5), key


KILLED = """
import os, sys
import modicum
from modicum.merging.pieces import Files
count, finish = [0], Files.finish
def dying(self, name, told):
    finish(self, name, told)
    count[0] += 1
    if count[0] == 7:
        os._exit(9)
Files.finish = dying
modicum.merge(sys.argv[1], sys.argv[2:4], sys.argv[4], method="ties", verify=False)
"""


def test_a_killed_merge_goes_on(three, tmp_path, monkeypatch):
    base, one, two = map(str, three)
    assert subprocess.run([sys.executable, "-c", KILLED, base, one, two, str(tmp_path / "out")]).returncode == 9
    assert (tmp_path / "out.partial").is_dir() and not (tmp_path / "out").exists()
    made, met = engine._made, []
    monkeypatch.setattr(engine, "_made", lambda job, name, known, sink: met.append(name) or made(job, name, known, sink))
    found = modicum.merge(base, [one, two], tmp_path / "out", method="ties", verify=False)
    assert len(met) == len(found.receipt["tensors"]) - 7
    whole = modicum.merge(base, [one, two], tmp_path / "whole", method="ties", verify=False)
    assert found.receipt["sha256"] == whole.receipt["sha256"]
    assert [row["name"] for row in found.receipt["tensors"]] == [row["name"] for row in whole.receipt["tensors"]]


def test_a_disk_that_fills_up_loses_nothing_and_is_gone_on_with(three, tmp_path, monkeypatch):
    base, one, two = three
    pwrite, left = os.pwrite, iter(range(9, -1, -1))

    def filling(*arguments):
        if next(left, 0) <= 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", filling)
        with pytest.raises(ModelError, match="space"):
            modicum.merge(base, [one, two], tmp_path / "out", method="average", verify=False)
    assert not (tmp_path / "out").exists()
    found = modicum.merge(base, [one, two], tmp_path / "out", method="average", verify=False)
    whole = modicum.merge(base, [one, two], tmp_path / "whole", method="average", verify=False)
    assert found.receipt["sha256"] == whole.receipt["sha256"] and not (tmp_path / "out.partial").exists()


def test_what_is_far_worse_than_its_parts_is_an_event(tmp_path):
    shutil.copytree(DEMO, tmp_path / "one")
    whole = load_file(tmp_path / "one/model.safetensors")
    draw = torch.Generator().manual_seed(0)
    moved = {name: value + (0.02 * torch.randn(value.shape, generator=draw)).to(value.dtype) for name, value in whole.items()}
    save_file(moved, tmp_path / "one/model.safetensors", {"format": "pt"})
    made = modicum.merge(
        "demo", [tmp_path / "one"], tmp_path / "out", method="task_arithmetic", weights=[4.0], samples=4, tokens=64, quality=True
    )
    assert "more than 1.5 times the worst input's" in made.receipt["events"][0]
    labels = [row["model"] for row in made.receipt["quality"]]
    assert labels == ["result", "base", "model 1"] and made.receipt["quality"][1]["difference_interval"][0] > 0


def test_a_model_whose_config_says_otherwise_is_told(three, tmp_path):
    base, one, _ = three
    other = checkpoint(tmp_path / "other", "mistral")
    made = modicum.merge(base, [one, other], tmp_path / "out", method="average")
    told = [event for event in made.receipt["events"] if "its config says" in event]
    assert len(told) == 1 and "MistralForCausalLM" in told[0] and "LlamaForCausalLM" in told[0] and str(other) in told[0]


def test_what_cannot_be_merged_leaves_nothing(three, tmp_path):
    base, one, two = three
    other, eighth = checkpoint(tmp_path / "other", "gpt2"), checkpoint(tmp_path / "eighth")
    coded = checkpoint(tmp_path / "coded")
    body = json.loads((coded / "config.json").read_text()) | {"quantization_config": {"quant_method": "compressed-tensors"}}
    (coded / "config.json").write_text(json.dumps(body))
    narrow = {name: value.to(torch.float8_e4m3fn) if value.ndim > 1 else value for name, value in weights(eighth).items()}
    save_file(narrow, eighth / "model.safetensors", {"format": "pt"})
    refused = [
        (ModelError, "other: must hold the tensor", {"models": [other]}),
        (SettingError, "one for each of 2 models", {"models": [one, two], "weights": [1.0]}),
        (SettingError, "must not be what is read", {"models": [one], "out": one}),
        (SettingError, "dtype: must be", {"models": [one], "dtype": "int8"}),
        (SettingError, "needs 0 MB|MB for its largest", {"models": [one], "ram": "1KB"}),
        (SettingError, "tokens: must be at least 2", {"models": [one], "tokens": 1}),
        (ModelError, "coded: must be stored dense to be merged, holds codes", {"models": [coded]}),
        (ModelError, "coded: must be stored dense to be merged, holds codes", {"base": coded, "models": [coded]}),
        (ModelError, "eighth: .* must be stored in 16 bits or more", {"models": [eighth]}),
        (ModelError, "eighth: .* must be stored in 16 bits or more", {"base": eighth, "models": [one]}),
        (SettingError, "takes 1 models", {"models": [one, two], "method": "wise_ft"}),
        (SettingError, "weights are shares", {"models": [one, two], "weights": [1.0, -1.0]}),
        (ModelError, "must be finite, holds NaN or Inf", {"models": [one], "method": "task_arithmetic", "weights": [1e40]}),
    ]
    for kind, words, settings in refused:
        with pytest.raises(kind, match=words):
            modicum.merge(**{"base": base, "out": tmp_path / "out", "method": "ties", **settings})
        assert not (tmp_path / "out").exists(), words


def test_memory_decides_how_much_is_made_at_a_time():
    """Pieces become shorter before threads become more; too little for one short piece is refused with what would do."""
    base, one = ({"w": torch.randn(300_000, generator=torch.Generator().manual_seed(seed))} for seed in (0, 1))
    job = Job(method_of("ties trim=tensor"), Held(base, "base"), (Held(one, "one"),), lambda name: (1.0,), threads=8)
    whole, short = require_memory(job, 1 << 40, 0), require_memory(job, 26 << 20, 0)
    assert whole.threads == 8 and short.threads == 1 and len(short.pieces("w")) > len(whole.pieces("w"))
    assert [start for _, start, _ in short.pieces("w")][1:] == [stop for _, _, stop in short.pieces("w")][:-1]
    with pytest.raises(SettingError, match=r"--ram: ties trim=tensor needs \d+ MB .* Give \d+ MB or more"):
        require_memory(job, 20 << 20, 0)


def test_the_memory_that_is_named_does(three, tmp_path):
    """What the process holds already is part of the figure, however little was allowed."""
    base, one, _ = three
    run = lambda ram: modicum.merge(base, [one], tmp_path / "out", method="average", ram=ram, verify=False)
    for ram in ("1MB", "30MB"):
        with pytest.raises(SettingError, match=r"--ram: .* MB that are held, and 0 MB are free. Give (\d+) MB or more") as told:
            run(ram)
    figure = int(str(told.value).split("Give ")[1].split()[0])
    assert run(f"{figure}MB").out.exists()


@pytest.mark.parametrize("method", ["ties", "average", "della", "robust_signature depth=1", "tsv"])
def test_a_tensor_of_no_entries_is_merged_to_one(method, tmp_path):
    base, one, two = ({"w": torch.randn(8, 8), "none": torch.zeros(0), "rows": torch.zeros(0, 4)} for _ in range(3))
    made = modicum.merge(base, [one, two], method=method)
    assert made.tensors["none"].shape == (0,) and made.tensors["rows"].shape == (0, 4)
    less, *others = ({"w": each["w"]} for each in (base, one, two))
    if method != "della":  # whose draws follow all that a model holds
        assert torch.equal(modicum.merge(less, others, method=method).tensors["w"], made.tensors["w"]), "and the others as without it"
    only = [{"none": torch.zeros(0, 4)} for _ in range(2)]
    assert modicum.merge(only[0], only[1:], method=method).tensors["none"].shape == (0, 4)


def test_a_file_of_no_entries_is_merged(three, tmp_path):
    base, one, _ = three
    for folder in (base, one):
        save_file(weights(folder) | {"model.none": torch.zeros(0, 4)}, folder / "model.safetensors", {"format": "pt"})
    assert weights(modicum.merge(base, [one], tmp_path / "out", method="average", verify=False).out)["model.none"].shape == (0, 4)
    job = Job(method_of("average"), Held({"none": torch.zeros(0)}, "base"), (Held({"none": torch.zeros(0)}, "one"),), lambda name: (1.0,))
    assert require_memory(job, 1 << 30, 0).threads >= 1


def test_signs_of_a_layer_agree_as_its_entries_do():
    """A large tensor, of which a part is looked at, weighs as many entries as it has beside a small one that is looked at whole."""
    large, small = torch.ones(1 << 20), torch.tensor([1.0, -1.0]).repeat(1 << 12)
    base = {"layers.0.large": torch.zeros(1 << 20), "layers.0.small": torch.zeros(1 << 13)}
    one, two = {"layers.0.large": large, "layers.0.small": small}, {"layers.0.large": large, "layers.0.small": -small}
    (layer,) = modicum.merge(base, [one, two], method="average").receipt["layers"]
    assert layer["sign_agreement"] == pytest.approx((1 << 20) / ((1 << 20) + (1 << 13)))


def test_a_tokenizer_of_another_model_is_told(three, tmp_path):
    for folder in three:
        for file in DEMO.glob("tokenizer*"):
            shutil.copy(file, folder)
    base, one, _ = three
    made = modicum.merge(base, [one], tmp_path / "out", method="average", samples=1, tokens=32)
    assert "perplexity" not in made.receipt["verified"]
    assert any("its perplexity was not measured: data: its tokens must be among the 256" in event for event in made.receipt["events"])
    with pytest.raises(DataError, match="its tokens must be among the 256"):
        modicum.merge(base, [one], tmp_path / "more", method="average", evaluate="curve", samples=1, tokens=32)
    assert not (tmp_path / "more").exists()
