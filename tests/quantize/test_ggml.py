import gguf
import numpy as np
import pytest
import torch

from modicum.core.errors import SettingError
from modicum.core.ggml import TYPES, fitting
from modicum.forms.ggml import decode
from modicum.quantize import Ggml, Nearest

each_type = pytest.mark.parametrize("name", TYPES)


def read(blocks, name):
    """What the reader of llama.cpp's own package gives."""
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), getattr(gguf.GGMLQuantizationType, name.upper())))


def test_types_are_those_of_the_package():
    for name, type in TYPES.items():
        theirs = getattr(gguf.GGMLQuantizationType, name.upper())
        assert (theirs.value, gguf.GGML_QUANT_SIZES[theirs]) == (type.number, (type.columns, type.bytes))
    assert set(Ggml.__dataclass_fields__["type"].metadata["choices"]) == set(TYPES)


@each_type
def test_blocks_are_read_to_the_bit(name):
    blocks = torch.randint(0, 256, (5, TYPES[name].row_bytes(768)), dtype=torch.uint8)
    made = Ggml(type=name).code(torch.randn(5, 768), torch.float32)
    for some in (blocks, made.blocks):
        ours, theirs = decode(some, name, 768), read(some, name)
        there = ~theirs.isnan()  # what stands for no number does so for both
        assert torch.equal(ours.isnan(), ~there) and torch.equal(ours[there].view(torch.int32), theirs[there].view(torch.int32))


def test_rows_that_blocks_do_not_fill_are_refused_with_types_that_fit(layer):
    assert fitting(96) == ["iq4_nl", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"] and not fitting(40)
    with pytest.raises(
        SettingError, match=r"ggml type=q4_k: rows must be whole blocks of 256 columns, have 96\. Choose type=iq4_nl, type=q4_0"
    ):
        layer().apply(Ggml(type="q4_k"))
    with pytest.raises(SettingError, match="have 40. Choose another method"):
        layer(4, 40).apply(Ggml())


def test_it_cannot_come_second(layer):
    with pytest.raises(SettingError, match="quantize/ggml: must come before"):
        layer().apply(Nearest(), Ggml())
