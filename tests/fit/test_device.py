"""A second device: what runs there gives the same files, and nothing of it meets what is here.

Where no GPU is found its place is taken by one of paper: tensors that say they are on ``cuda:0`` and refuse to meet others, as a GPU's do, while
this processor does their work. What only a GPU has, its kernels and their rounding, is for the tests marked ``gpu``.
"""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import modicum
from modicum.core.errors import SettingError
from modicum.measure import subject
from modicum.testing import zoo

GPU = torch.device("cuda:0")


class There(torch.Tensor):
    """A tensor of the device of paper; ``here`` holds its values. To what has no notion of such devices it is on ``meta``."""

    device, is_meta, is_cuda = property(lambda self: GPU), False, True
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, here.size(), device="meta", requires_grad=False, **layout)

    def __init__(self, here):
        self.here = here

    def untyped_storage(self):
        return self.here.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return worked(func, args, kwargs or {})


class Paper(TorchDispatchMode):
    """Inside, ``cuda:0`` is a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return worked(func, args, kwargs or {})


def worked(func, args, kwargs):
    """What an operation gives, where its operands are or where it was asked for."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = [isinstance(value, There) for value in tensors if value.ndim or isinstance(value, There)]
    asked = next((value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.device)), None)
    moves = "copy" in str(func)
    if any(there) and not all(there) and not moves and "index" not in str(func):
        raise RuntimeError(f"{func}: all tensors must be on one device")
    if any(there) and any(value.is_meta for value in tensors):
        raise RuntimeError(f"{func}: met a tensor without values; indices as lists are made into one here")
    if asked is not None and asked.type == "meta" and "empty" not in str(func):  # of torch's own code, which knows no other
        asked = GPU
    result_there = asked == GPU if asked is not None else isinstance(args[0], There) if moves else any(there)
    place = asked if asked is not None and asked != GPU else torch.device("cpu")
    here = lambda values: tree_map_only(torch.device, lambda _: place, tree_map_only(There, lambda value: value.here, values))
    given = func(*here(args), **here(kwargs))
    if func._schema.is_mutable and tensors and given is getattr(args[0], "here", args[0]):
        return args[0]
    return tree_map_only(torch.Tensor, There, given) if result_there else given


@pytest.fixture(params=["paper", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no GPU was found")
        yield "cuda"
    else:
        monkeypatch.setattr(subject, "chosen_device", lambda name: GPU if name == "cuda" else torch.device("cpu"))
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
        with Paper():
            yield "cuda"


def fitted(name, out, **settings):
    model, batches = zoo.build(name)
    modicum.fit(model, data=batches, out=out, target="modicum", search_time=0.0, **settings)
    return json.loads((out / "receipt.json").read_text())


WAYS = {
    "gptq": ("llama", {"method": "gptq bits=4"}),
    "experts": ("qwen3_moe", {"method": "wanda keep=0.5"}),
    "convolutions": ("cnn", {"method": "sparsegpt keep=0.5"}),
    "inputs": ("llama", {"method": "replaceme count=1"}),
    "cuts": ("llama", {"method": "ziplm keep=0.5 | nearest bits=8"}),
    "biases": ("opt", {"method": "flap keep=0.5"}),
    "budget": ("llama", {"budget": "6bpw", "menu": "nearest bits=4,gptq bits=8 sweeps=0", "gradient_samples": 2}),
    "budget of a module": ("mlp", {"budget": "6bpw", "menu": "nearest bits=4,gptq bits=8 sweeps=0", "gradient_samples": 2}),
}
# One method and one budget in the short form.
SHORT = ("convolutions", "budget of a module")


@pytest.mark.parametrize("way", [pytest.param(way, marks=[] if way in SHORT else pytest.mark.slow) for way in WAYS])
def test_a_device_gives_what_the_processor_gives(tmp_path, device, way):
    name, settings = WAYS[way]
    there = fitted(name, tmp_path / "there", device=device, **settings)
    here = fitted(name, tmp_path / "here", **settings)
    assert (there["versions"]["device"], here["versions"]["device"]) == ("cuda:0", "cpu")
    assert there["bytes"]["actual"] == here["bytes"]["actual"]
    assert there["quality"]["mean"] == pytest.approx(here["quality"]["mean"], rel=0.05)


def test_a_module_stays_where_its_owner_has_put_it(device, tmp_path):
    model, batches = zoo.build("cnn")
    for owner in model.modules():
        owner._parameters.update(
            {name: torch.nn.Parameter(value.detach().to(GPU)) for name, value in owner._parameters.items() if value is not None}
        )
        owner._buffers.update({name: value.to(GPU) for name, value in owner._buffers.items()})
    before = [parameter.detach().cpu().clone() for parameter in model.parameters()]
    receipt = modicum.fit(model, data=batches, method="wanda keep=0.5", out=tmp_path / "out").receipt
    assert receipt["versions"]["device"] == "cuda:0"
    assert all(parameter.device == GPU and torch.equal(parameter.cpu(), old) for parameter, old in zip(model.parameters(), before))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "mps"])
def test_other_names_are_refused(name):
    with pytest.raises(SettingError, match="must be auto, cpu, cuda"):
        subject.chosen_device(name)


def test_a_gpu_that_is_not_there_is_not_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="no GPU that torch can use"):
        subject.chosen_device("cuda")


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"workers": "2"}, "workers: must be 1"), ({"budget": modicum.Budget(latency=0.003)}, "is timed on the processor")],
)
def test_what_a_device_cannot_do_is_refused(device, settings, why):
    model, batches = zoo.build("mlp")
    with pytest.raises(SettingError, match=why):
        modicum.fit(model, data=batches, device=device, **{"budget": "6bpw"} | settings)
