"""Directories that earlier versions wrote load for ever: to the values that they had then."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import modicum

GOLDEN = Path(__file__).parent / "golden"
# Codes with steps in quarters of an octave; in whole octaves and one and a half times those; on paths through a trellis.
VALUES = {
    "quarters": "c149cac02351b9a1a3d72b93581717a041ad29da3109cd344dc010e9f6baa419",
    "halves": "0cdf27800b6a031a47868e01344f0b8906494fc66449dbd3423409e574a1a5d7",
    "paths": "6c2246570a332f40e5964ea20e07fca7e083fcf78f94d4e1b6c2978ac6bd8c55",
}


@pytest.mark.parametrize("name", VALUES)
def test_codes_come_back_to_the_values_they_had(name):
    told = json.loads((GOLDEN / name / "modicum.json").read_text())["units"]
    assert {unit["form"]["kind"] for unit in told.values()} == {"coded"}
    assert {unit["form"].get("steps", "quarters") for unit in told.values()} == {name if name != "paths" else "halves"}
    assert {unit["form"].get("trellis", 0) for unit in told.values()} == {8 if name == "paths" else 0}
    module = nn.Sequential(nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 8)).to(torch.bfloat16)
    loaded = modicum.load(GOLDEN / name, into=module)
    values = b"".join(value.detach().float().numpy().astype("<f4").tobytes() for value in loaded.parameters())
    assert hashlib.sha256(values).hexdigest() == VALUES[name]


# Formats of inputs, and what was found.
INPUTS = {
    "activated": ("int8", "fp8", "9d38509ea783e36857fbc74ba4d6e6a97070150002902e374db23a2e4c3e6cd3"),
    "activated4": ("nvfp4", "mxfp4", "2335716977bb7ce2221c8268842a8e7be2fecbae90359ffaad24663371d13d2c"),
}


@pytest.mark.parametrize("folder", INPUTS)
def test_inputs_are_rounded_as_they_were(folder):
    module = nn.Sequential(nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 8)).to(torch.bfloat16)
    loaded = modicum.load(GOLDEN / folder, into=module)
    first, second = (next(iter(loaded[place]._forward_pre_hooks.values())).rounding for place in (0, 2))
    assert (first.format, second.format) == INPUTS[folder][:2] and second.scale is None
    steps = torch.linspace(-4, 4, 48).view(2, 24).bfloat16()
    kept = [*loaded.parameters(), first(steps), second(steps[:, :16])]
    values = b"".join(value.detach().float().numpy().astype("<f4").tobytes() for value in kept)
    assert hashlib.sha256(values).hexdigest() == INPUTS[folder][2]


@pytest.mark.parametrize(
    ("folder", "digest"),
    [
        ("codebook", "50d17319e158535ca56705acb57698a8c65306fe972b5d6841949f8a0872ea9e"),
        ("nested", "57f4b646224b787938dbe6b617e2c327553a5b17c2ca8cb6ec857de6379b565a"),
        ("blockwise", "483ee5db8fa9fa863f084ebbcc920ad2f44808401a077278e03e19bb6d0d2e49"),
        ("repaired", "abc8a7cc1ecfe0b85dd8ccabe2c2ca7e6745b4acfda7fc37efb2f8bed0bc23cd"),
        ("six_bits", "8dc91401fe5de08be5c64d10d457924ffdcc91c0247deea8d15e117d7f9aec97"),
    ],
)
def test_codebooks_and_floats_and_scales_under_scales_come_back_to_the_values_they_had(folder, digest):
    module = nn.Sequential(nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 8)).to(torch.bfloat16)
    loaded = modicum.load(GOLDEN / folder, into=module)
    values = b"".join(value.detach().float().numpy().astype("<f4").tobytes() for value in loaded.parameters())
    assert hashlib.sha256(values).hexdigest() == digest


# Types of blocks that were there, in the order of layers; those whose columns are bound came later.
BOUND = ["iq2_s", "iq3_s"]
BLOCKS = ["q1_0", "q2_0", "q2_k", "q3_k", "iq4_xs", "q4_k", "iq4_nl", "q4_0", "q4_1", "q5_k", "q5_0", "q5_1", "q6_k", "q8_0"]


class Beside(nn.Module):
    """A layer of each type of blocks."""

    def __init__(self, types):
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(256, 2, bias=False) for name in types})


@pytest.mark.parametrize(
    ("folder", "types", "digest"),
    [
        ("ggml", BLOCKS, "586d3f89166b5441a536da94b2a8eeb718fd8e1c229a4ce3ef8a767ed419dcf0"),
        ("ggml_lattice", BOUND, "e21d76893ab712f4ecb65d8ab3235ddefbaaca7af4eeef3dc49af0fe3daf1a75"),
    ],
)
def test_blocks_come_back_to_the_values_they_had(folder, types, digest):
    told = json.loads((GOLDEN / folder / "modicum.json").read_text())["units"]
    assert {unit["form"]["type"] for unit in told.values()} == set(types)
    loaded = modicum.load(GOLDEN / folder, into=Beside(types).to(torch.bfloat16))
    values = b"".join(value.detach().float().numpy().astype("<f4").tobytes() for value in loaded.parameters())
    assert hashlib.sha256(values).hexdigest() == digest
