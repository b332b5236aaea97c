"""Adapters of PEFT without PEFT: folders made by hand, values computed by hand, and every lie of a folder."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modicum.core.errors import ModelError, SettingError
from modicum.delta import Delta
from modicum.delta.opened import opened
from modicum.delta.peft import from_peft, is_peft, to_peft
from modicum.forms import Base, Dense, Hadamard, Householder, Kronecker, LowRank, Normalized, Rotated, Sum, restore

KEY = "base_model.model."


class Small(nn.Module):
    """A table, two layers and a convolution, their weights counted up."""

    def __init__(self):
        super().__init__()
        self.table, self.one, self.two = nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 4, bias=False)
        self.conv = nn.Conv1d(4, 2, 3)
        for number, parameter in enumerate(self.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))


def drawn(*shape, seed=9):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def adapter(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    save_file({KEY + name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 6} | config))
    return folder


def made(folder, name="one.weight", base=None):
    base = base or Small()
    return from_peft(folder, base).weight(name, base.get_parameter(name).detach().reshape(len(base.get_parameter(name)), -1))


A, B = drawn(2, 4), drawn(6, 2)
PAIR = {"one.lora_A.weight": A, "one.lora_B.weight": B}
ONE = Small().one.weight.detach()


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"one": 1}}, 0.5),
        ({"r": 7, "rank_pattern": {"ne": 7, "^one": 2}}, 3.0),
    ],
)
def test_scales_of_lora(tmp_path, config, scale):
    torch.testing.assert_close(made(adapter(tmp_path / "a", PAIR, **config)), ONE + scale * B @ A)


def test_dora_gives_rows_their_lengths(tmp_path):
    lengths = torch.arange(1.0, 7)
    weight = made(adapter(tmp_path / "a", PAIR | {"one.lora_magnitude_vector": lengths}, use_dora=True))
    torch.testing.assert_close(weight.norm(dim=1), lengths)
    torch.testing.assert_close(torch.cosine_similarity(weight, ONE + 3 * B @ A), torch.ones(6))


def test_a_table_and_a_convolution(tmp_path):
    base = Small()
    tensors = {
        "table.lora_embedding_A": drawn(2, 5), "table.lora_embedding_B": drawn(4, 2),
        "conv.lora_A.weight": drawn(2, 4, 3), "conv.lora_B.weight": drawn(2, 2, 1),
    }  # fmt: skip
    folder = adapter(tmp_path / "a", tensors)
    torch.testing.assert_close(made(folder, "table.weight"), base.table.weight.detach() + 3 * (drawn(4, 2) @ drawn(2, 5)).T)
    added = torch.einsum("or,rik->oik", drawn(2, 2, 1)[:, :, 0], drawn(2, 4, 3))
    torch.testing.assert_close(made(folder, "conv.weight").reshape(2, 4, 3), base.conv.weight.detach() + 3 * added)


def test_biases_that_were_saved_and_that_are_added(tmp_path):
    new, more = torch.arange(6.0), torch.ones(6)
    folder = adapter(tmp_path / "a", PAIR | {"one.base_layer.bias": new, "one.lora_B.bias": more}, bias="lora_only", lora_bias=True)
    delta = from_peft(folder, Small())
    torch.testing.assert_close(delta.weight("one.bias", Small().one.bias.detach()[None]), (new + 3)[None])


def test_pissa_stands_on_what_its_start_left(tmp_path):
    left, sizes, right = torch.linalg.svd(ONE, full_matrices=False)
    start = {"one.lora_A.weight": (sizes[:2, None] / 3).sqrt() * right[:2], "one.lora_B.weight": left[:, :2] * (sizes[:2] / 3).sqrt()}
    torch.testing.assert_close(made(adapter(tmp_path / "a", start, init_lora_weights="pissa")), ONE)
    rest = (left[:, 2:] * sizes[2:]) @ right[2:]
    torch.testing.assert_close(made(adapter(tmp_path / "a", PAIR, init_lora_weights="pissa")), rest + 3 * B @ A)


def test_ia3_scales_inputs_or_outputs(tmp_path):
    into, out = torch.arange(1.0, 7)[None], torch.arange(1.0, 7)[:, None]
    folder = adapter(tmp_path / "a", {"two.ia3_l": into, "one.ia3_l": out}, peft_type="IA3", feedforward_modules=["two"])
    torch.testing.assert_close(made(folder, "two.weight"), Small().two.weight.detach() * into)
    torch.testing.assert_close(made(folder), ONE * out)
    torch.testing.assert_close(
        from_peft(folder, Small()).weight("one.bias", Small().one.bias.detach()[None]), Small().one.bias[None] * out.T
    )


def test_the_new_forms_are_what_they_say():
    base, turn = Dense(drawn(4, 6)), torch.tensor([[0.0, 1], [-1, 0]])
    dense = base.weight
    cases = {
        Rotated(base, turn[None]): dense @ torch.block_diag(turn, turn, turn),
        Householder(base, 2 * torch.eye(6)[:, [1]]): dense * torch.tensor([1.0, -1, 1, 1, 1, 1]),
        Kronecker(Dense(drawn(2, 3)), Dense(drawn(2, 2))): torch.kron(drawn(2, 3), drawn(2, 2)),
        Hadamard((base, base)): dense.square(),
        Normalized(base, torch.full((6,), 2.0), "columns"): 2 * dense / dense.norm(dim=0),
    }
    for form, wanted in cases.items():
        torch.testing.assert_close(form.dense(), wanted)
        again = restore(json.loads(json.dumps(form.describe())), form.tensors())
        assert torch.equal(again.dense(), form.dense()) and again.nbytes == sum(tensor.nbytes for tensor in form.tensors().values())


def test_what_is_written_is_read_again(tmp_path):
    shape, leaf = tuple(ONE.shape), Base(tuple(ONE.shape), torch.float32, "one.weight")
    delta = Delta({"one.weight": Normalized(Sum((leaf, LowRank(B, A))), torch.ones(shape[0]))})
    to_peft(delta, tmp_path / "a", Small())
    torch.testing.assert_close(made(tmp_path / "a"), delta.weight("one.weight", ONE), rtol=1e-6, atol=1e-6)
    for name, form, told in (
        ("one.weight", Dense(ONE), "kind dense"),
        ("one.weight", LowRank(B, A), "a new weight of kind low_rank"),
        ("one.bias", Dense(torch.ones(1, 6)), "layers of their own"),
        ("three", Dense(ONE), "has no weight"),
    ):
        with pytest.raises(ModelError, match=told):
            to_peft(Delta({name: form}), tmp_path / "b", Small())
    assert not (tmp_path / "b").exists()


LIES = {
    "no settings": ({}, None, "must hold the settings"),
    "a kind unknown": ({}, {"peft_type": "LORB"}, r"'?LORB'? is a kind of adapter that is not read"),
    "a prompt": ({}, {"peft_type": "PROMPT_TUNING"}, "trains inputs"),
    "a factor is missing": ({"one.lora_B.weight": None}, {}, "must hold one.lora_B.weight"),
    "another rank": ({}, {"r": 3}, "one.lora_B.weight must have shape 6 × 3"),
    "another shape": ({"one.lora_A.weight": drawn(2, 5)}, {}, "one.lora_A.weight must have shape 2 × 4"),
    "a layer of nothing": ({"none.lora_A.weight": A}, {}, "belongs to no layer of the base"),
    "a weight of nothing": ({"none.weight": A}, {}, "belongs to nothing in the base"),
    "a weight unasked": ({"two.weight": drawn(4, 6)}, {}, "no setting says why"),
    "a layer is missing": ({}, {"target_modules": ["one", "two"]}, "must hold what changes two"),
    "a module is missing": ({}, {"modules_to_save": ["two"]}, "must hold two.weight"),
    "lengths unasked": ({"one.lora_magnitude_vector": torch.ones(6)}, {}, "belongs to nothing under these settings"),
    "no lengths": ({}, {"use_dora": True}, "must hold one.lora_magnitude_vector"),
    "not finite": ({"one.lora_A.weight": A * math.nan}, {}, "must be finite"),
    "whole numbers": ({"one.lora_A.weight": torch.ones(2, 4, dtype=torch.int32)}, {}, "int32"),
    "an endless pattern": ({}, {"alpha_pattern": {"(a+)+": 3}}, "it repeats a group"),
    "a strength that is a word": ({}, {"lora_alpha": "x"}, "lora_alpha must be a number"),
    "another formula": ({}, {"use_qalora": True}, "use_qalora is on"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_lies_is_told(tmp_path, lie):
    tensors, config, told = LIES[lie]
    whole = {name: tensor for name, tensor in (PAIR | tensors).items() if tensor is not None}
    folder = adapter(tmp_path / "a", whole, **(config or {}))
    if config is None:
        (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match=told):
        from_peft(folder, Small())


def test_a_folder_is_opened_whoever_wrote_it(tmp_path):
    folder = adapter(tmp_path / "a", PAIR)
    assert is_peft(folder) and not is_peft(tmp_path)
    with pytest.raises(SettingError, match="Name the base"):
        opened(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"must hold adapter_model.safetensors"):
        from_peft(folder, Small())
