"""PEFT's own forward pass against the weights that its adapters become here, and ours as adapters in PEFT."""

import copy
import warnings

import pytest
import torch

from modicum.core.errors import ModelError
from modicum.delta import Delta
from modicum.delta.applying import apply
from modicum.delta.peft import from_peft, to_peft
from modicum.testing import zoo
from modicum.train.trained import trained

# PEFT warns of its own future; what it says of keys is looked at.
pytestmark = pytest.mark.filterwarnings("ignore")
LLAMA, GPT2, MOE = "llama", "gpt2", "qwen3_moe"
ATTENTION = ["q_proj", "v_proj"]
EVERY = [*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONV1D = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
UNTOLD = {"init_lora_weights": False}

# Kind, model, settings: what was trained is drawn, so that every part of every kind counts.
CASES = {
    "lora": ("Lora", LLAMA, {"r": 4, "lora_alpha": 6, "target_modules": EVERY}),
    "lora on Conv1D": ("Lora", GPT2, {"r": 4, **CONV1D}),
    "rslora": ("Lora", LLAMA, {"r": 4, "use_rslora": True, "target_modules": ATTENTION}),
    "patterns": (
        "Lora", LLAMA,
        {"r": 4, "target_modules": EVERY, "rank_pattern": {"q_proj": 2, "layers.0.mlp.up_proj": 3}, "alpha_pattern": {"k_proj|q_proj": 5}},
    ),
    "lora of some layers": ("Lora", LLAMA, {"r": 2, "target_modules": ATTENTION, "layers_to_transform": [1]}),
    "lora by pattern": ("Lora", LLAMA, {"r": 2, "target_modules": r".*layers\.0\.(self_attn|mlp)\.(q|up)_proj"}),
    "lora and all biases": ("Lora", "qwen2", {"r": 2, "target_modules": ["q_proj"], "bias": "all"}),
    "lora and its biases": ("Lora", GPT2, {"r": 2, "bias": "lora_only", **CONV1D}),
    "lora with a bias": ("Lora", "qwen2", {"r": 2, "target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "lora on a table": ("Lora", LLAMA, {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}),
    "lora on convolutions": ("Lora", "resnet", {"r": 2, "target_modules": ["convolution"]}),
    "dora": ("Lora", LLAMA, {"r": 4, "use_dora": True, "target_modules": EVERY}),
    "dora on Conv1D": ("Lora", GPT2, {"r": 4, "use_dora": True, **CONV1D}),
    "dora on a table": ("Lora", LLAMA, {"r": 4, "use_dora": True, "target_modules": ["embed_tokens"]}),
    "dora on convolutions": ("Lora", "resnet", {"r": 2, "use_dora": True, "target_modules": ["convolution"]}),
    "pissa": ("Lora", LLAMA, {"r": 4, "init_lora_weights": "pissa", "target_modules": EVERY}),
    "pissa on Conv1D": ("Lora", GPT2, {"r": 4, "init_lora_weights": "pissa", **CONV1D}),
    "pissa and dora": ("Lora", LLAMA, {"r": 4, "init_lora_weights": "pissa", "use_dora": True, "target_modules": ATTENTION}),
    "olora": ("Lora", LLAMA, {"r": 4, "init_lora_weights": "olora", "target_modules": EVERY}),
    "modules to save": ("Lora", LLAMA, {"r": 2, "target_modules": ATTENTION, "modules_to_save": ["lm_head", "post_attention_layernorm"]}),
    "experts": ("Lora", MOE, {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    "one stack": ("Lora", MOE, {"r": 2, "target_modules": [], "target_parameters": ["experts.down_proj"]}),
    "experts stored turned": (
        "Lora", "gpt_oss", {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "ia3": ("IA3", LLAMA, {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "ia3 with biases": ("IA3", GPT2, {"target_modules": ["c_attn", "c_fc"], "feedforward_modules": ["c_fc"], "fan_in_fan_out": True}),
    "ia3 on convolutions": ("IA3", "resnet", {"target_modules": ["convolution"], "feedforward_modules": r".*layer\.0\.convolution"}),
    "vera": ("Vera", LLAMA, {"r": 8, "target_modules": EVERY}),
    "vera drawn again": ("Vera", LLAMA, {"r": 8, "target_modules": EVERY, "save_projection": False, "projection_prng_key": 7}),
    "vera on Conv1D": ("Vera", GPT2, {"r": 8, **CONV1D}),
    "loha": ("LoHa", LLAMA, {"r": 3, "alpha": 5, "target_modules": EVERY}),
    "loha on convolutions": ("LoHa", "resnet", {"r": 2, "use_effective_conv2d": True, "target_modules": ["convolution"]}),
    "lokr": ("LoKr", LLAMA, {"r": 2, "alpha": 5, "target_modules": EVERY}),
    "lokr of both": ("LoKr", LLAMA, {"r": 1, "alpha": 5, "decompose_both": True, "target_modules": EVERY}),
    "lokr whole": ("LoKr", LLAMA, {"r": 64, "target_modules": EVERY}),
    "lokr on convolutions": ("LoKr", "resnet", {"r": 1, "use_effective_conv2d": True, "target_modules": ["convolution"]}),
    "hra": ("HRA", LLAMA, {"r": 4, "target_modules": EVERY}),
    "hra made orthogonal": ("HRA", LLAMA, {"r": 4, "apply_GS": True, "target_modules": EVERY}),
    "oft": ("OFT", LLAMA, {"oft_block_size": 8, "target_modules": EVERY, "use_cayley_neumann": False}),
    "oft by a series": ("OFT", LLAMA, {"oft_block_size": 8, "target_modules": EVERY, "use_cayley_neumann": True, "num_cayley_neumann_terms": 6}),
    "oft by three terms": ("OFT", LLAMA, {"oft_block_size": 8, "target_modules": EVERY, "use_cayley_neumann": True, "num_cayley_neumann_terms": 3}),
    "oft held near": ("OFT", LLAMA, {"oft_block_size": 8, "target_modules": EVERY, "coft": True, "eps": 0.3}),
    "oft of one block": ("OFT", LLAMA, {"oft_block_size": 8, "target_modules": EVERY, "block_share": True}),
    "boft": ("BOFT", LLAMA, {"boft_block_size": 4, "boft_n_butterfly_factor": 1, "target_modules": EVERY}),
    "boft with biases": ("BOFT", "qwen2", {"boft_block_size": 4, "boft_n_butterfly_factor": 1, "target_modules": ["q_proj"]}),
    "adalora": ("AdaLora", LLAMA, {"init_r": 4, "target_r": 2, "total_step": 10, "target_modules": EVERY}),
}  # fmt: skip


@pytest.fixture(scope="module")
def peft(package):
    return package("peft")


def outcome(module, batch):
    with torch.no_grad():
        made = module(**batch)
    return made.logits if hasattr(made, "logits") else made.last_hidden_state


def checkpoint(name, folder):
    module, batches = zoo.build(name)
    module.save_pretrained(folder)
    return type(module), batches[0]


def adapter(peft, cls, base, folder, kind, settings):
    """An adapter as PEFT saves it, all that it trains drawn at random; its logits once it is loaded again."""
    chance = torch.Generator().manual_seed(3)
    module = peft.get_peft_model(cls.from_pretrained(base), getattr(peft, f"{kind}Config")(**settings))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=chance)
        assert "ranknum" not in name or not parameter.requires_grad
    module.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(cls.from_pretrained(base), folder).eval()


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_becomes_the_weights_that_its_forward_pass_stands_for(peft, tmp_path, case):
    kind, name, settings = CASES[case]
    cls, batch = checkpoint(name, tmp_path / "base")
    wanted = outcome(adapter(peft, cls, tmp_path / "base", tmp_path / "adapter", kind, settings), batch)
    before = outcome(cls.from_pretrained(tmp_path / "base").eval(), batch)
    delta = from_peft(tmp_path / "adapter", tmp_path / "base")
    delta.save(tmp_path / "delta")
    apply(tmp_path / "base", [Delta.load(tmp_path / "delta")], tmp_path / "out")
    made = outcome(cls.from_pretrained(tmp_path / "out").eval(), batch)
    moved = float((wanted - before).abs().max())
    assert moved > 1e-3, "the adapter must change something for this to mean anything"
    assert float((made - wanted).abs().max()) <= 2e-5 * max(1.0, moved, float(before.abs().max()))


def test_a_converted_start_stands_on_the_base(peft, tmp_path):
    cls, batch = checkpoint(LLAMA, tmp_path / "base")
    settings = {"r": 4, "target_modules": ATTENTION, "init_lora_weights": "pissa"}
    module = peft.get_peft_model(cls.from_pretrained(tmp_path / "base"), peft.LoraConfig(**settings))
    start = copy.deepcopy(module.peft_config["default"])
    module.peft_config["default"].init_lora_weights = True
    module.save_pretrained(tmp_path / "start")
    module.peft_config["default"] = start
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    wanted = outcome(module.eval(), batch)
    module.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    apply(tmp_path / "base", [from_peft(tmp_path / "adapter", tmp_path / "base")], tmp_path / "out")
    torch.testing.assert_close(outcome(cls.from_pretrained(tmp_path / "out").eval(), batch), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("option", ["lora rank=3", "vera rank=8"])
@pytest.mark.parametrize("name", [LLAMA, GPT2, "qwen2"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_what_is_learnt_here_is_loaded_by_peft(peft, tmp_path, option, name, scale):
    cls, batch = checkpoint(name, tmp_path / "base")
    module = cls.from_pretrained(tmp_path / "base").eval()
    with trained(module, option) as t:
        draw = torch.Generator().manual_seed(1)
        for parameter in t.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        delta = t.delta(name).scaled(scale)
    to_peft(delta, tmp_path / "adapter", tmp_path / "base")
    apply(tmp_path / "base", [delta], tmp_path / "out")
    ours = outcome(cls.from_pretrained(tmp_path / "out").eval(), batch)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        theirs = peft.PeftModel.from_pretrained(cls.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    assert not [each for each in told if "adapter keys" in str(each.message)], "a key that is missing or odd is a warning in PEFT"
    torch.testing.assert_close(outcome(theirs, batch), ours, rtol=0, atol=2e-5)
    again = from_peft(tmp_path / "adapter", tmp_path / "base")
    assert again.forms.keys() == delta.forms.keys()


@pytest.mark.parametrize(
    "case", ["lora", "patterns", "dora", "lora on convolutions", "dora on convolutions", "pissa", "vera", "lora on a table"]
)
def test_there_and_back(peft, tmp_path, case):
    kind, name, settings = CASES[case]
    cls, batch = checkpoint(name, tmp_path / "base")
    wanted = outcome(adapter(peft, cls, tmp_path / "base", tmp_path / "adapter", kind, settings), batch)
    to_peft(from_peft(tmp_path / "adapter", tmp_path / "base"), tmp_path / "again", tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(cls.from_pretrained(tmp_path / "base"), tmp_path / "again").eval()
    assert float((outcome(theirs, batch) - wanted).abs().max()) <= 2e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("PromptTuning", {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}, "trains inputs"),
        ("PrefixTuning", {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"}, "trains inputs"),
        ("Lora", {"r": 2, "init_lora_weights": "pissa_niter_2", "target_modules": ATTENTION}, "cannot be made again"),
        ("LNTuning", {"target_modules": ["input_layernorm"]}, "kind of adapter that is not read"),
        ("Lora", {"r": 2, "target_modules": ["q_proj"], "lora_bias": True}, "has no bias in the base"),
    ],
)  # fmt: skip
def test_what_no_weight_can_hold_is_told(peft, tmp_path, kind, settings, told):
    cls, _ = checkpoint(LLAMA, tmp_path / "base")
    module = peft.get_peft_model(cls.from_pretrained(tmp_path / "base"), getattr(peft, f"{kind}Config")(**settings))
    module.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=told):
        from_peft(tmp_path / "adapter", tmp_path / "base")


def test_a_tied_table_is_told(peft, tmp_path):
    module = zoo.tied_twin()[0]
    module.save_pretrained(tmp_path / "base")
    made = peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=["embed_tokens"]))
    made.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="shares its weight with lm_head.weight"):
        from_peft(tmp_path / "adapter", tmp_path / "base")
