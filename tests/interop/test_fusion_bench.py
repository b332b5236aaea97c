"""fusion_bench on the same tensors: what both have must come out alike, and where it does not the reason is told here.

It lives in an environment of its own: ``python -m venv .venv-fusion-bench``, then in it ``pip install torch==2.13.0`` and
``pip install fusion_bench``.
"""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import modicum

PEER = Path(__file__).parents[2] / ".venv-fusion-bench" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PEER.exists(), reason="fusion_bench is in .venv-fusion-bench, which is not there: see this file")

THEIRS = """
import typing
import torch, typing_extensions
typing.override = typing_extensions.override  # 0.2.33 takes it from typing, which has it from Python 3.12 on
from safetensors.torch import load_file, save_file
from torch import nn
from fusion_bench import BaseModelPool
from fusion_bench.method.simple_average import SimpleAverageAlgorithm
from fusion_bench.method.weighted_average.weighted_average import WeightedAverageAlgorithm
from fusion_bench.method.task_arithmetic.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.ties_merging.ties_merging import TiesMergingAlgorithm
from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
from fusion_bench.method.dare.task_arithmetic import DareTaskArithmetic
from fusion_bench.method.model_stock.model_stock import ModelStock
from fusion_bench.method.slerp.slerp import SlerpMergeAlgorithm

def net(file):
    made = nn.Sequential(nn.Linear(48, 64), nn.LayerNorm(64), nn.Linear(64, 40))
    made.load_state_dict(load_file(file + ".safetensors"))
    return made

def pool(base=True, names=("one", "two", "three")):
    return BaseModelPool({**({"_pretrained_": net("base")} if base else {}), **{name: net(name) for name in names}})

def put(name, found):
    found = found.state_dict() if isinstance(found, nn.Module) else found
    save_file({key: value.detach().contiguous() for key, value in found.items()}, name + ".theirs.safetensors")

put("average", SimpleAverageAlgorithm().run(pool(False)))
put("weighted", WeightedAverageAlgorithm(normalize=True, weights=[1.0, 3.0, 0.5]).run(pool(False)))
put("task_arithmetic", TaskArithmeticAlgorithm(scaling_factor=0.3).run(pool()))
put("ties", TiesMergingAlgorithm(scaling_factor=0.7, threshold=20, remove_keys=[], merge_func="mean").run(pool()))
put("ties_two", TiesMergingAlgorithm(scaling_factor=1.0, threshold=30, remove_keys=[], merge_func="mean").run(pool(names=("one", "two"))))
put("model_stock", ModelStock().run(pool(names=("one", "two"))))
put("model_stock_three", ModelStock().run(pool()))
put("slerp", SlerpMergeAlgorithm(t=0.3).run(pool(False, ("one", "two"))))
torch.manual_seed(0)
put("dare", DareTaskArithmetic(scaling_factor=1.0, sparsity_ratio=0.5, only_on_linear_weights=False).run(pool()))
each = [load_file(name + ".safetensors") for name in ("one", "two", "three")]
listed = {key: [one[key] for one in each] for key in each[0]}
fishers, grams = ([load_file(f"{kind}.{name}.safetensors") for name in ("one", "two", "three")] for kind in ("fisher", "gram"))
put("fisher", merging_with_fisher_weights(listed, fishers, torch.ones(3) / 3, False, 1e-6))
put("regmean", merging_with_regmean_weights(listed, grams, 0.9))
base = load_file("base.safetensors")
changes = compute_and_sum_svd_mem_reduction([{key: one[key] - base[key] for key in base} for one in each], accelerator="cpu")
put("tsv", {key: base[key] + changes[key] for key in base})
"""
OURS = {
    "average": ("average", 3, {}),
    "weighted": ("average", 3, {"weights": [1.0, 3.0, 0.5]}),
    "task_arithmetic": ("task_arithmetic scale=0.3", 3, {}),
    "ties": ("ties density=0.2 scale=0.7", 3, {}),
    "ties_two": ("ties density=0.3", 2, {}),
    "model_stock": ("model_stock", 2, {}),
    "model_stock_three": ("model_stock", 3, {}),
    "fisher": ("fisher", 3, {}),
    "regmean": ("regmean off=0.9", 3, {}),
    "tsv": ("tsv", 3, {}),
}
# How far apart both may be, relative to the largest entry; all else is the last bits of float32.
APART = {
    "model_stock_three": (5e-3, "the mean of the angles is taken there, here that of the cosines, which differ on short tensors"),
    "fisher": (1e-4, "1e-6 is added to every entry of the statistics there"),
    "regmean": (1e-4, "an inverse is taken there in float32"),
    "tsv": (1e-4, "three decompositions in float32"),
}
# Of each model one entry more is kept there: all from the k-th on that is not kept.
AT_THE_EDGE = {"ties": 3, "ties_two": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, three models near it, statistics of each, and what fusion_bench made of them."""
    folder = tmp_path_factory.mktemp("fusion_bench")
    net = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 40))
    base = {name: value.detach().clone() for name, value in net.state_dict().items()}
    save_file(base, folder / "base.safetensors")
    shared = {name: 0.03 * torch.randn(value.shape) for name, value in base.items()}
    for seed, name in enumerate(("one", "two", "three")):
        draw = torch.Generator().manual_seed(seed)
        save_file(
            {key: value + shared[key] + 0.02 * torch.randn(value.shape, generator=draw) for key, value in base.items()},
            folder / f"{name}.safetensors",
        )
        save_file(
            {key: 0.1 + torch.rand(value.shape, generator=draw) for key, value in base.items()}, folder / f"fisher.{name}.safetensors"
        )
        grams = {}
        for module, columns in (("0", 48), ("2", 64)):
            x = torch.randn(300, columns, generator=draw)
            grams[module] = x.T @ x / 300
        save_file(grams, folder / f"gram.{name}.safetensors")
    (folder / "theirs.py").write_text(THEIRS)
    subprocess.run([PEER, "theirs.py"], cwd=folder, check=True, capture_output=True, timeout=600)
    return folder


def merged(place, method, count, **settings):
    base, *models = (load_file(place / f"{name}.safetensors") for name in ("base", "one", "two", "three")[: count + 1])
    if method.startswith(("fisher", "regmean")):
        kind = "fisher" if method == "fisher" else "gram"
        found = [load_file(place / f"{kind}.{name}.safetensors") for name in ("one", "two", "three")]
        settings["statistics"] = [
            {f"{key}/fisher" if kind == "fisher" else f"{key}.weight/gram": value for key, value in each.items()} for each in found
        ]
    return modicum.merge(base, models, method=method, **settings).tensors


@pytest.mark.parametrize("name", OURS)
def test_both_say_the_same(place, name):
    method, count, settings = OURS[name]
    one, other = merged(place, method, count, **settings), load_file(place / f"{name}.theirs.safetensors")
    assert one.keys() == other.keys()
    bound = APART.get(name, (3e-6, ""))[0]
    far = {key: (one[key] - other[key]).abs() > bound * float(other[key].abs().max()) for key in one}
    assert sum(int(each.sum()) for each in far.values()) <= AT_THE_EDGE.get(name, 0), {key: int(each.sum()) for key, each in far.items()}


def test_the_arc_between_two_models_is_the_same(place):
    one, two = (load_file(place / f"{name}.safetensors") for name in ("one", "two"))
    found, other = modicum.merge(one, [two], method="slerp", weights=[0.3]).tensors, load_file(place / "slerp.theirs.safetensors")
    assert all(torch.allclose(found[key], other[key], atol=1e-5) for key in other)


def test_where_chance_is_another_the_mean_is_alike(place):
    base, one = load_file(place / "base.safetensors"), merged(place, "dare density=0.5", 3)
    other = load_file(place / "dare.theirs.safetensors")
    size = lambda found: sum(float((found[key] - base[key]).square().sum()) for key in base) ** 0.5
    assert 0.9 < size(one) / size(other) < 1.1
