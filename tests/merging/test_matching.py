"""A twin whose units were put in any order matches back to the bit; what is matched computes as before; what cannot be matched is said."""

import pytest
import torch
from torch import nn

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.merging.matching import matched
from modicum.models.permutable import by_tensor, numberings, permuted
from modicum.testing import zoo


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5),
    )  # fmt: skip


def built(name):
    torch.manual_seed(0)
    if name == "layers":
        return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 4)), (torch.randn(3, 6),), {}
    if name == "convolutions":
        return conv(), (torch.randn(2, 3, 10, 10),), {}
    module, batches = zoo.build(name)
    return module, (), batches[0]


def turned(module, sets, seed=3):
    draw = torch.Generator().manual_seed(seed)
    orders = [(each, torch.randperm(each.count, generator=draw)) for each in sets]
    found = {name: value.clone() for name, value in module.state_dict().items()}
    for name, members in by_tensor(orders).items():
        found[name] = permuted(found[name], members)
    return found


# What moves: units of each layer, channels with their norms; heads with the keys they share, channels of feed-forward layers, the residual stream.
@pytest.mark.parametrize(
    "name, counts",
    [
        ("layers", [16, 20]), ("convolutions", [8, 12]), ("llama", [2, 2, 2, 64, 128, 128, 128]), ("gpt2", [4, 4, 4, 64, 128, 128, 128]),
        ("vit", None), ("t5", None),
    ],
)  # fmt: skip
def test_a_permuted_twin_matches_back(name, counts):
    module, args, kwargs = built(name)
    sets = numberings(module, *args, **kwargs)
    assert counts is None or sorted(each.count for each in sets) == counts
    twin, base = turned(module, sets), module.state_dict()
    assert any(not torch.equal(twin[name], base[name]) for name in base)
    found = list(zip(sets, matched(base.__getitem__, twin.__getitem__, sets)))
    for tensor, members in by_tensor(found).items():
        twin[tensor] = permuted(twin[tensor], members)
    assert sets and all(torch.equal(twin[tensor], value) for tensor, value in base.items())


def test_a_merge_with_the_twin_is_the_model(tmp_path):
    module, args, _ = built("layers")
    twin, _, _ = built("layers")
    twin.load_state_dict(turned(module, numberings(module, *args)))
    made = modicum.merge(module, [module, twin], method="average", match=args[0])
    assert all(torch.equal(made.tensors[name], value) for name, value in module.state_dict().items())
    assert made.receipt["matched"][1]["moved"] > 0 and made.receipt["matched"][0]["moved"] == 0
    plain = modicum.merge(module, [module, twin], method="average").tensors
    assert not torch.allclose(plain["0.weight"], module[0].weight)


def test_folders_are_matched(tmp_path):
    module = zoo.build("llama")[0]
    module.save_pretrained(tmp_path / "base")
    sets = numberings(module, **zoo.build("llama")[1][0])
    module.load_state_dict(turned(module, sets))
    module.save_pretrained(tmp_path / "twin")
    made = modicum.merge(tmp_path / "base", [tmp_path / "twin"], tmp_path / "out", method="task_arithmetic", match=True, verify=False)
    assert (made.out / "model.safetensors").read_bytes() == (tmp_path / "base/model.safetensors").read_bytes()
    with pytest.raises(SettingError, match="must be true for folders"):
        modicum.merge(tmp_path / "base", [tmp_path / "twin"], tmp_path / "other", match=torch.ones(1))


def test_what_leaves_the_module_or_is_mixed_does_not_move():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            hidden = self.a(x)
            return self.c(self.b(hidden).softmax(-1).cumsum(-1)), hidden

    assert numberings(Mixed(), torch.randn(2, 4)) == []
    with pytest.raises(SettingError, match="an example of a module's inputs"):
        modicum.merge({"w": torch.ones(2)}, [{"w": torch.ones(2)}], match=torch.ones(1))
    module, args, _ = built("layers")
    with pytest.raises(ModelError, match="must have the shape of the base's to be matched"):
        modicum.merge(module, [nn.Sequential(nn.Linear(6, 21), nn.ReLU(), nn.Linear(21, 16), nn.GELU(), nn.Linear(16, 4))], match=args[0])
