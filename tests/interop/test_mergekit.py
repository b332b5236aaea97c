"""mergekit on the same files: what both have must come out alike, and where it does not the reason is told here.

It lives in an environment of its own: ``python -m venv .venv-mergekit``, then ``pip install torch==2.13.0`` and ``pip install mergekit`` in it.
"""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import modicum
from modicum.testing import zoo

PEER = Path(__file__).parents[2] / ".venv-mergekit" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PEER.exists(), reason="mergekit is in .venv-mergekit, which is not there: see this file")

TWO = "models:\n- {{model: one, parameters: {{weight: {w1}{more}}}}}\n- {{model: two, parameters: {{weight: {w2}{more}}}}}\n"


def based(method, w1=0.4, w2=0.7, density=None, parameters=""):
    more = "" if density is None else f", density: {density}"
    head = f"merge_method: {method}\nbase_model: base\ndtype: float32\n" + (f"parameters: {{{parameters}}}\n" if parameters else "")
    return head + TWO.format(w1=w1, w2=w2, more=more)


SLICED = """merge_method: slerp
base_model: one
dtype: float32
slices:
- sources: [{model: one, layer_range: [0, 2]}, {model: two, layer_range: [0, 2]}]
parameters: {t: [{filter: mlp, value: [0, 1]}, {filter: attn, value: 0.3}, {value: 0.5}]}
"""
STACKED = """merge_method: passthrough
dtype: float32
slices:
- sources: [{model: one, layer_range: [0, 2]}]
- sources: [{model: two, layer_range: [1, 2]}]
"""
CASES = {
    "linear": based("linear").replace("base_model: base\n", ""),
    "task arithmetic": based("task_arithmetic", parameters="lambda: 0.8"),
    "task arithmetic, taken away": based("task_arithmetic", 1.0, -0.5),
    "ties": based("ties", density=0.3),
    "ties, whole": based("ties", density=1.0, parameters="lambda: 0.5"),
    "breadcrumbs": based("breadcrumbs", density=0.6, parameters="gamma: 0.05"),
    "breadcrumbs_ties": based("breadcrumbs_ties", density=0.6, parameters="gamma: 0.05"),
    "model_stock": "merge_method: model_stock\nbase_model: base\ndtype: float32\nmodels: [{model: one}, {model: near}]\n",
    "multislerp": based("multislerp"),
    "karcher": "merge_method: karcher\ndtype: float32\nmodels: [{model: one}, {model: two}]\n",
    "sce": "merge_method: sce\nbase_model: base\ndtype: float32\nmodels: [{model: one}, {model: two}]\nparameters: {select_topk: 0.4}\n",
    "slices, filters and gradients": SLICED,
    "stacked layers": STACKED,
}
CHANCE = {
    "dare_linear": based("dare_linear", density=0.5),
    "dare_ties": based("dare_ties", density=0.5),
    "della": based("della", density=0.5),
}
# How far apart both may be, relative to the largest entry; all else is the last bits of float32, in which mergekit computes.
# A share of a tensor's entries is rounded to the nearest count here and down there, so that of each of the two models
# one entry may be on the other side at the upper end, and two at the lower.
AT_THE_EDGE = ("breadcrumbs", "breadcrumbs_ties")
APART = {
    "karcher": (2e-4, "mergekit stops its search at an angle of 1e-5 after at most ten steps"),
    "multislerp": (1e-4, "mergekit adds 1e-8 to norms and takes tangents in float32, where the products of long vectors lose digits"),
}
MERGE = """
import json, sys
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for name, text in json.load(open("cases.json")).items():
    config = MergeConfiguration.model_validate(__import__("yaml").safe_load(text))
    run_merge(config, "theirs/" + name, MergeOptions(copy_tokenizer=False, allow_crimes=True, quiet=True, write_model_card=False))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three models of one kind, and what mergekit made of each case."""
    folder = tmp_path_factory.mktemp("mergekit")
    for name, moves in {"base": {}, "one": {1: 0.05}, "two": {2: 0.05}, "near": {1: 0.04, 3: 0.02}}.items():
        model = zoo.build("llama")[0]
        for seed, size in moves.items():
            draw = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.data += size * torch.randn(parameter.shape, generator=draw)
        model.save_pretrained(folder / name)
    (folder / "cases.json").write_text(json.dumps(CASES | CHANCE))
    subprocess.run([PEER, "-c", MERGE], cwd=folder, check=True, capture_output=True, timeout=600)
    return folder


def theirs(place, name):
    found = {}
    for file in (place / "theirs" / name).glob("*.safetensors"):
        found |= load_file(file)
    return found


def ours(place, name, monkeypatch):
    monkeypatch.chdir(place)
    (place / "plan.yaml").write_text((CASES | CHANCE)[name])
    made = modicum.merge(out=place / "ours" / name.replace(" ", "-"), plan=place / "plan.yaml", verify=False, overwrite=True)
    return load_file(made.out / "model.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_both_say_the_same(place, name, monkeypatch):
    one, other = ours(place, name, monkeypatch), theirs(place, name)
    bound = APART.get(name, (2e-6, ""))[0]
    assert one.keys() == other.keys()
    if name in AT_THE_EDGE:
        apart = {key: int(((one[key] - other[key]).abs() > bound * other[key].abs().max()).sum()) for key in one}
        assert max(apart.values()) <= 6, apart
        return
    worst = {key: float((one[key] - other[key]).abs().max() / other[key].abs().max().clamp(min=1e-3)) for key in one}
    assert max(worst.values()) < bound, max(worst.items(), key=lambda item: item[1])


@pytest.mark.parametrize("name", CHANCE)
def test_where_chance_is_another_the_mean_is_alike(place, name, monkeypatch):
    """Masks differ; over all entries the size of what is added is the same."""
    one, other, base = ours(place, name, monkeypatch), theirs(place, name), load_file(place / "base" / "model.safetensors")
    size = lambda found: sum(float((found[key] - base[key]).square().sum()) for key in base) ** 0.5
    assert 0.9 < size(one) / size(other) < 1.1
