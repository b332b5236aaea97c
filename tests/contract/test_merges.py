"""Every merge, against every promise it makes. A new one is held to them by existing."""

import pytest
import torch

from modicum.core.errors import ModelError, SettingError
from modicum.core.method import registry
from modicum.merge._family import Merge
from modicum.merging.merge import merge, method_of

# Settings at which nothing is trimmed or dropped.
WHOLE = {"density": 1.0, "gamma": 0.0, "keep": 1.0, "ridge": 0.0, "bits": 0, "project": False, "depth": 1.0, "clip": 0.0, "select": 1.0}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def merges():
    return [pytest.param(cls, id=key) for key, cls in registry().items() if issubclass(cls, Merge)]


each = pytest.mark.parametrize("cls", merges())


def text(cls, whole=False):
    settings = {name: value for name, value in WHOLE.items() if whole and name in cls.__dataclass_fields__}
    return f"{cls.key()} {' '.join(f'{name}={value}' for name, value in settings.items())}".strip()


def model(seed, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"block.0.weight": (20, 12), "block.1.weight": (6, 4, 3, 3), "block.1.bias": (6,), "norm": (1,)}
    made = {
        name: (torch.randn(shape, generator=draw) * 10.0 ** torch.randint(-6, 3, shape, generator=draw)).to(dtype)
        for name, shape in shapes.items()
    }
    return {**made, "steps": torch.tensor(3)}


def beside(cls, count):
    """Statistics of data, for those that are made of them."""
    if not cls.statistics:
        return {}
    draw, found = torch.Generator().manual_seed(9), []
    for _ in range(count):
        mine = {}
        for name, value in model(0).items():
            for kind in cls.statistics:
                if kind == "gram" and value.ndim == 2:
                    x = torch.randn(50, value.shape[1], generator=draw, dtype=torch.float64)
                    mine[f"{name}/gram"] = x.T @ x
                elif kind != "gram" and value.is_floating_point():
                    mine[f"{name}/{kind}"] = torch.rand(value.shape, generator=draw)
        found.append(mine)
    return {"statistics": found}


def same_bits(one, other):
    return all(torch.equal(one[name], other[name]) for name in other) and one.keys() == other.keys()


def shared(cls, models):
    """Models as the method takes them: under one mask, say, where it asks for that."""
    zero = {name: value.abs() < 1e-4 for name, value in models[0].items()}
    if cls.__name__ != "SparseSoup":
        return models
    return [
        {name: value.masked_fill(zero[name], 0) if value.is_floating_point() else value for name, value in one.items()} for one in models
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each
def test_one_model_with_weight_one_is_that_model(cls, dtype):
    base, one = shared(cls, [model(0, dtype), model(1, dtype)])
    if cls.least > 1:
        pytest.skip("takes more models")
    found = merge(base, [one], method=text(cls, whole=True), weights=[1.0], **beside(cls, 1)).tensors
    if "one model" in cls.known_gaps:
        eps = 64 * torch.finfo(dtype).eps
        wide = {name: value.double() for name, value in one.items()}
        assert all(
            bool((found[name] - wide[name]).norm() <= eps * (wide[name].norm() + (base[name].double() - wide[name]).norm()))
            for name in wide
        )
    else:
        assert same_bits(found, one)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each
def test_equal_models_merge_to_themselves(cls, dtype):
    base = model(0, dtype)
    count = max(cls.least, min(cls.most, 3))
    weights = None if cls.shares or cls.most == 1 else [1 / 3] * count
    found = merge(base, [base] * count, method=text(cls, whole=True), weights=weights, **beside(cls, count)).tensors
    if "equal models" in cls.known_gaps:
        assert all(
            torch.allclose(found[name].double(), base[name].double(), rtol=1e-2, atol=1e-2 * float(base[name].abs().max())) for name in base
        )
    else:
        assert same_bits(found, base)


@each
def test_the_order_counts_only_where_that_is_said(cls):
    count = max(cls.least, min(cls.most, 3))
    if count == 1:
        pytest.skip("takes one model")
    models = shared(cls, [model(seed) for seed in range(count + 1)])
    weights, given = [1.0, 2.0, 0.5][:count], beside(cls, count)
    found = merge(models[0], models[1:], method=text(cls), weights=weights, **given).tensors
    turned = {name: value[::-1] for name, value in given.items()}
    other = merge(models[0], models[1:][::-1], method=text(cls), weights=weights[::-1], **turned).tensors
    assert same_bits(found, other) or cls.ordered


@each
def test_threads_pieces_and_inputs(cls, monkeypatch):
    """Any number of threads gives the same; what is given stays as it is; and pieces of any size do, up to the last bits of sums."""
    count = max(cls.least, min(cls.most, 2))
    models = shared(cls, [model(seed) for seed in range(count + 1)])
    before = [{name: value.clone() for name, value in one.items()} for one in models]
    found = merge(models[0], models[1:], method=text(cls), **beside(cls, count)).tensors
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        other = merge(models[0], models[1:], method=text(cls), **beside(cls, count)).tensors
    finally:
        torch.set_num_threads(threads)
    assert same_bits(found, other) and all(same_bits(*pair) for pair in zip(models, before))
    monkeypatch.setattr("modicum.merging.job.PIECE", 7)
    again = merge(models[0], models[1:], method=text(cls), **beside(cls, count)).tensors
    assert all(torch.allclose(found[name].double(), again[name].double(), rtol=1e-5, atol=1e-30) for name in found)


@each
def test_what_is_wrong_is_named(cls):
    count = max(cls.least, min(cls.most, 2))
    models = shared(cls, [model(seed) for seed in range(count + 1)])
    given = beside(cls, count)
    spoilt = {**models[1], "block.0.weight": models[1]["block.0.weight"].clone()}
    spoilt["block.0.weight"][3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"model 1: block\.0\.weight must be finite"):
        merge(models[0], [spoilt, *models[2:]], method=text(cls), **given)
    lacking = {name: value for name, value in models[1].items() if name != "norm"}
    with pytest.raises(ModelError, match="model 1: must hold the tensor norm"):
        merge(models[0], [lacking, *models[2:]], method=text(cls), **given)
    with pytest.raises(SettingError, match="one for each of"):
        merge(models[0], models[1:], method=text(cls), weights=[1.0] * (count + 1), **given)


@pytest.mark.parametrize("name", ["gptq", "lora", "ties | average", "tie"])
def test_only_merges_merge(name):
    with pytest.raises(SettingError):
        method_of(name)


@each
def test_sums_are_of_float32_or_wider_whatever_is_stored(cls):
    """What is made of 16 bits is what is made of the same numbers in 32, up to one rounding of it."""
    count = max(cls.least, min(cls.most, 3))
    models = shared(cls, [model(seed, torch.bfloat16) for seed in range(count + 1)])
    wide = [{name: value.float() if value.is_floating_point() else value for name, value in one.items()} for one in models]
    weights = [1.0, 2.0, 0.5][:count]
    found = merge(models[0], models[1:], method=text(cls, whole=True), weights=weights, **beside(cls, count)).tensors
    wanted = merge(wide[0], wide[1:], method=text(cls, whole=True), weights=weights, **beside(cls, count)).tensors
    for name, value in wanted.items():
        if value.is_floating_point():
            sizes = torch.stack([one[name].double().abs() for one in wide]).sum(0)
            near = torch.finfo(torch.bfloat16).eps / 2 * value.double().abs() + 1e-5 * (
                sizes if cls.pieces else sizes.max()
            )  # of whole tensors entries mix
            assert bool(((found[name].double() - value.double()).abs() <= near).all()), name
