"""Cuts that really are narrower once loaded, and only where a trial found the outputs equal."""

import copy
import json
from types import SimpleNamespace

import hypothesis.strategies as some
import pytest
import torch
from hypothesis import given
from torch import nn

import modicum
from modicum.core.errors import ModelError
from modicum.core.unit import Unit
from modicum.data.splits import call
from modicum.drop import Flap, Ziplm
from modicum.export.container import Container
from modicum.export.narrow import Group, Incision, group_units, narrowed
from modicum.export.precise import precisely
from modicum.forms import Cut, Dense
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.outputs import output_tensor
from modicum.sweep.spill import SpillPool
from modicum.testing import zoo


def export(directory, module, batches, method, *, dropped=(), batch="first"):
    """Cut a module and write it; the module that ``verify`` gives, and what it found."""
    model = open_model(module)
    script = rehearse(model, batches[0])
    change = method.reshape(model, script, batches, SpillPool(None))
    forms = {name: form for name, form in change.forms.items() if not script.home(name, dropped)}
    target, gone = Container(model, script), frozenset(dropped)
    target.layout(forms, change.biases, gone).write(directory)
    target.finish(directory, forms, gone)
    return target.verify(directory, forms, batches[0] if batch == "first" else batch)


def outputs(module, batch):
    with torch.no_grad():
        return output_tensor(call(module, batch))[0]


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


class Block(nn.Module):
    """Two linear layers around a rectifier; ``scale`` of the width between them is what a narrower one silently changes."""

    def __init__(self, scale=0.0):
        super().__init__()
        self.fc1, self.fc2, self.scale = nn.Linear(16, 32), nn.Linear(32, 16), scale

    def forward(self, x):
        inner = self.fc1(x).relu()
        return x + self.fc2(inner) * (1 + self.scale * inner.shape[-1])


class Stack(nn.Module):
    def __init__(self, *scales):
        super().__init__()
        self.blocks = nn.ModuleList(Block(scale) for scale in scales)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def plain(*scales, dtype=torch.float32):
    return Stack(*scales).to(dtype).eval(), [{"x": torch.randn(3, 5, 16).to(dtype)} for _ in range(3)]


# Equal, and smaller


@pytest.mark.parametrize(
    "name, attributes",
    [
        ("llama", {}),
        ("qwen2", {}),
        ("gpt_neox", {}),
        ("gpt2", {"num_heads": 2, "split_size": 32, "embed_dim": 32}),
        ("opt", {"num_heads": 2}),
        ("bert", {"num_attention_heads": 2}),
        ("vit", {"num_attention_heads": 2}),
        ("whisper", {"num_heads": 2}),
    ],
)
def test_the_narrow_model_gives_what_the_wide_one_gives(tmp_path, name, attributes):
    module, batches = zoo.build(name)
    verified, found = export(tmp_path, module, batches, Ziplm(keep=0.5))
    narrow, wide = modicum.load(tmp_path), modicum.load(tmp_path, narrow=False)
    assert found["as wide as before"] == {} and len(found["narrow"]) == found["units compared"]
    linear = [part for part in narrow.modules() if isinstance(part, nn.Linear)]
    assert all((part.out_features, part.in_features) == tuple(part.weight.shape) for part in linear)
    assert size(narrow) < 0.75 * size(wide) and size(wide) == size(verified) == size(module) and found["narrow difference"] < 1e-5
    for batch in batches:
        torch.testing.assert_close(outputs(narrow, batch), outputs(wide, batch), rtol=1e-3, atol=1e-4)
        assert torch.equal(outputs(wide, batch), outputs(verified, batch))
    recorded = [
        values for group in json.loads((tmp_path / "modicum.json").read_text())["narrow"] for values in group["attributes"].values()
    ]
    assert all(values == attributes for values in recorded) and bool(recorded) == bool(attributes)


def test_widths_may_differ_from_block_to_block(tmp_path):
    module, batches = zoo.build("gpt2")
    _, found = export(tmp_path, module, batches, Flap(keep=0.6))
    assert found["as wide as before"] == {}
    narrow = modicum.load(tmp_path)
    assert len({block.mlp.c_fc.nf for block in narrow.transformer.h}) > 1
    assert all(block.mlp.c_fc.nf == block.mlp.c_proj.nx == len(block.mlp.c_fc.bias) for block in narrow.transformer.h)
    assert all(block.attn.split_size == 16 * block.attn.num_heads == block.attn.c_proj.nx for block in narrow.transformer.h)
    torch.testing.assert_close(outputs(narrow, batches[0]), outputs(modicum.load(tmp_path, narrow=False), batches[0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_a_narrow_model_writes_the_same_text(tmp_path, name):
    module, batches = zoo.build(name)
    export(tmp_path, module, batches, Ziplm(keep=0.5))
    texts = [
        modicum.load(tmp_path, narrow=narrow).generate(batches[0]["input_ids"], max_new_tokens=8, do_sample=False, use_cache=True)
        for narrow in (True, False)
    ]
    assert torch.equal(*texts) and texts[0].shape == (2, 32)


def test_blocks_that_are_gone_renumber_the_others(tmp_path):
    module, batches = zoo.build("opt")
    _, found = export(tmp_path, module, batches, Ziplm(keep=0.5), dropped=("model.decoder.layers.1",))
    narrow, wide = modicum.load(tmp_path), modicum.load(tmp_path, narrow=False)
    assert found["as wide as before"] == {} and len(narrow.model.decoder.layers) == 2
    assert {unit.split(".")[3] for unit in found["narrow"]} == {"0", "2"}
    assert all(layer.fc1.out_features == 64 for layer in narrow.model.decoder.layers)
    torch.testing.assert_close(outputs(narrow, batches[0]), outputs(wide, batches[0]), rtol=1e-3, atol=1e-4)


def test_quantized_inside_a_cut(tmp_path):
    module, batches = zoo.build("llama")
    method = "ziplm keep=0.5 | gptq bits=4 group=16 | eora rank=4"
    result = modicum.fit(module, method=method, data=batches, target="modicum", allocator="uniform")
    assert len(result.receipt["verification"]["narrow"]) == 21
    assert size(result.model) < 0.75 * size(modicum.load(result.out, narrow=False))
    assert result.receipt["verification"]["logits"]["largest"] < 1e-6


def test_a_module_of_ones_own(tmp_path):
    module, batches = plain(0.0, 0.0)
    empty = copy.deepcopy(module)
    _, found = export(tmp_path, module, batches, Ziplm(keep=0.25))
    narrow = modicum.load(tmp_path, into=empty)
    assert narrow is empty and narrow.blocks[1].fc1.weight.shape == (8, 16) and len(found["narrow"]) == 4
    wide = modicum.load(tmp_path, into=copy.deepcopy(module), narrow=False)
    torch.testing.assert_close(outputs(narrow, batches[1]), outputs(wide, batches[1]))


@given(seed=some.integers(0, 10_000), kept=some.lists(some.booleans(), min_size=32, max_size=32).filter(any))
def test_any_channels_of_a_rectified_layer_may_go(seed, kept):
    torch.manual_seed(seed)
    block, x, mask = Block(), torch.randn(4, 16), torch.tensor(kept)
    units = {name: linear_unit(name, getattr(block, name)) for name in ("fc1", "fc2")}
    incisions = {"fc1": Incision(units["fc1"], mask, None), "fc2": Incision(units["fc2"], None, mask)}
    with torch.no_grad():
        block.fc2.weight[:, ~mask] = 0
        wide, before = block(x), {name: value.clone() for name, value in block.state_dict().items()}
        with narrowed(dict(block.named_modules()), incisions, [Group(("fc1", "fc2"))]):
            assert block.fc1.weight.shape == (sum(kept), 16) and len(block.fc1.bias) == sum(kept)
            torch.testing.assert_close(block(x), wide, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())
    assert (block.fc1.out_features, block.fc2.in_features) == (32, 32)


def linear_unit(name, owner):
    shape = tuple(owner.weight.shape)
    return Unit(f"{name}.weight", f"{name}.weight", name, "linear", shape, shape, owner.weight.dtype)


# Not equal, and therefore wide


def test_what_the_forward_refuses_stays_wide_by_name(tmp_path):
    module, batches = zoo.build("phi3")  # splits queries, keys and values at widths of the config
    _, found = export(tmp_path, module, batches, Ziplm(keep=0.5))
    assert set(found["as wide as before"]) == {f"model.layers.{i}.self_attn.o_proj.weight" for i in range(3)}
    assert all("its forward refuses" in why for why in found["as wide as before"].values())
    narrow = modicum.load(tmp_path)
    assert narrow.model.layers[0].self_attn.qkv_proj.out_features == 128 and narrow.model.layers[0].mlp.down_proj.in_features == 64
    torch.testing.assert_close(outputs(narrow, batches[0]), outputs(modicum.load(tmp_path, narrow=False), batches[0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_that_would_silently_change_stays_wide(tmp_path, dtype):
    # In bfloat16 a thousandth is far below the rounding of every weight and output, and is found all the same.
    module, batches = plain(0.0, 1e-4, 0.0, dtype=dtype)
    _, found = export(tmp_path, module, batches, Ziplm(keep=0.5))
    assert list(found["as wide as before"]) == ["blocks.1.fc2.weight"] and "differ by" in found["as wide as before"]["blocks.1.fc2.weight"]
    narrow = modicum.load(tmp_path, into=copy.deepcopy(module))
    assert [block.fc1.out_features for block in narrow.blocks] == [16, 32, 16]
    assert {parameter.dtype for parameter in narrow.parameters()} == {dtype}


def test_without_an_input_all_stays_wide(tmp_path):
    module, batches = plain(0.0)
    for name, batch in (("none", None), ("wrong", {"x": torch.zeros(2, 7)})):
        (tmp_path / name).mkdir()
        verified, found = export(tmp_path / name, copy.deepcopy(module), batches, Ziplm(keep=0.5), batch=batch)
        assert found["narrow"] == [] and "no input to try it on" in found["as wide as before"]["blocks.0.fc2.weight"]
        assert size(verified) == size(module)


def test_half_precision_models_are_tried_in_single(tmp_path):
    module, batches = zoo.build("t5", dtype=torch.bfloat16)  # casts to the dtype of a weight before it is called
    _, found = export(tmp_path, module, batches, Ziplm(keep=0.5))
    assert len(found["narrow"]) == 12 and all("DenseReluDense" in unit for unit in found["narrow"])
    assert all("SelfAttention" in unit or "EncDecAttention" in unit for unit in found["as wide as before"])  # their bias is by head


def test_precision_is_given_back_even_where_a_forward_fails():
    module = plain(0.0, dtype=torch.bfloat16)[0]
    before = dict(module.named_parameters())
    with torch.no_grad(), pytest.raises(RuntimeError), precisely(module):
        assert module(torch.ones(1, 16)).dtype == torch.float32
        module(torch.ones(1, 7))
    assert {name: id(value) for name, value in module.named_parameters()} == {name: id(value) for name, value in before.items()}
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_groups_end_at_the_unit_whose_columns_are_cut():
    mask = torch.tensor([True, False])
    cut = lambda rows, columns: SimpleNamespace(rows=mask if rows else None, columns=mask if columns else None)
    incisions = {"a": cut(1, 0), "b": cut(1, 0), "c": cut(0, 1), "d": cut(1, 0), "e": cut(1, 1), "f": cut(0, 1), "g": cut(1, 0)}
    order = ["a", "x", "b", "c", "d", "e", "f", "g"]
    assert [group.units for group in group_units(incisions, order)] == [("a", "b", "c"), ("d", "e", "f")]


def test_an_incision_is_of_cuts_in_modules_of_their_own():
    unit, form = linear_unit("fc", nn.Linear(4, 4)), Cut(Dense(torch.ones(2, 4)), torch.tensor([True, True, False, False]), None)
    assert Incision.of(unit, form).shape == (2, 4) and Incision.of(unit, Dense(torch.ones(4, 4))) is None
    for other in ({"aliases": ("head.weight",)}, {"kind": "convolution"}, {"expert": 1}):
        assert Incision.of(Unit(**{**vars(unit), **other}), form) is None


# What is read back


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    module, batches = zoo.build("gpt2")
    directory = tmp_path_factory.mktemp("cut")
    export(directory, module, batches, Ziplm(keep=0.5))
    return directory


def rewritten(written, tmp_path, change):
    body = json.loads((written / "modicum.json").read_text())
    change(body)
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "modicum.json").write_text(json.dumps(body))
    return tmp_path


def test_files_without_the_record_load_wide(written, tmp_path):
    old = modicum.load(rewritten(written, tmp_path, lambda body: body.pop("narrow")))
    assert size(old) == size(modicum.load(written, narrow=False)) > size(modicum.load(written))


ATTENTION = "transformer.h.0.attn"
WRONG = {
    "no list": lambda body: body.update(narrow={}),
    "a text": lambda body: body.update(narrow="all"),
    "a number": lambda body: body.update(narrow=[7]),
    "null": lambda body: body.update(narrow=[None]),
    "no units": lambda body: body["narrow"][0].update(units=[]),
    "units of lists": lambda body: body["narrow"][0].update(units=[["a"]]),
    "an unknown unit": lambda body: body["narrow"][0]["units"].append("transformer.h.9.attn.c_attn.weight"),
    "a unit twice": lambda body: body["narrow"].append(body["narrow"][0]),
    "more than a group": lambda body: body["narrow"][0].update(forward="x"),
    "attributes of a list": lambda body: body["narrow"][0].update(attributes=[]),
    "values of a list": lambda body: body["narrow"][0].update(attributes={ATTENTION: [1]}),
    "no such module": lambda body: body["narrow"][0].update(attributes={"transformer.h.0.attn.x": {"num_heads": 2}}),
    "another attribute": lambda body: body["narrow"][0].update(attributes={ATTENTION: {"forward": 2}}),
    "no such attribute": lambda body: body["narrow"][0].update(attributes={ATTENTION: {"num_kv_heads": 1}}),
    "a text for a count": lambda body: body["narrow"][0].update(attributes={ATTENTION: {"num_heads": "2"}}),
    "true for a count": lambda body: body["narrow"][0].update(attributes={ATTENTION: {"num_heads": True}}),
    "no heads": lambda body: body["narrow"][0].update(attributes={ATTENTION: {"num_heads": 0}}),
    "more heads than before": lambda body: body["narrow"][0].update(attributes={ATTENTION: {"num_heads": 10**30}}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_record_that_cannot_be_followed_is_refused(written, tmp_path, wrong):
    directory = rewritten(written, tmp_path, WRONG[wrong])
    with pytest.raises(ModelError, match=r"narrow must list groups of this model's cut units \(.*\)\. Load with narrow=False"):
        modicum.load(directory)
    assert size(modicum.load(directory, narrow=False)) == size(modicum.load(written, narrow=False))


def test_only_a_cut_can_be_narrow(tmp_path):
    module, batches = zoo.build("llama")
    result = modicum.fit(module, method="nearest bits=8 group=32", data=batches, target="modicum", allocator="uniform")
    unit = {"units": ["model.layers.0.mlp.up_proj.weight"]}
    directory = rewritten(result.out, tmp_path, lambda body: body.update(narrow=[unit]))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.up_proj\.weight is no cut of a linear module"):
        modicum.load(directory)
    assert "narrow" not in result.receipt["verification"]


UNIT = "transformer.h.0.mlp.c_fc.weight"
SPOILT = {
    "a block that is none": lambda body: body.update(dropped=["transformer.h.7"]),
    "a dropped number": lambda body: body.update(dropped=[3]),
    "a dropped module": lambda body: body.update(dropped=["transformer.wte"]),
    "a parameter in a list": lambda body: body["units"][UNIT].update(parameter=["x"]),
    "a parameter elsewhere": lambda body: body["units"][UNIT].update(parameter="transformer.nowhere.weight"),
    "an expert": lambda body: body["units"][UNIT].update(expert=3),
    "an expert of text": lambda body: body["units"][UNIT].update(expert="first"),
    "another storage": lambda body: body["units"][UNIT].update(stored_shape=[2**40, 2**40]),
    "another shape": lambda body: body["units"][UNIT]["form"].update(shape=[64]),
    "no unit": lambda body: body["units"].update({UNIT: None}),
}


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_spoilt_description_is_refused_in_a_sentence(written, tmp_path, spoilt, narrow):
    directory = rewritten(written, tmp_path, SPOILT[spoilt])
    with pytest.raises(ModelError):
        modicum.load(directory, narrow=narrow)
