"""Packed tensors in the shapes and widths of compressed-tensors' own tests: both packers, both unpackers and its compressor agree to the bit."""

import math

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

import modicum
from modicum.core.errors import SettingError
from modicum.export.schemes import reads_widths, tensors
from modicum.forms import Float4, Integer
from modicum.forms.minifloat import LAYOUTS
from modicum.forms.packing import pack, unpack
from modicum.testing import zoo

# Its own cases: rows and columns that words divide and do not, widths of one number to a whole byte.
SHAPES = [(256, 1024), (512, 100), (128, 33), (64, 64), (511, 350), (830, 545), (342, 512), (256, 700)]
FOURS = [(4, 16), (32, 64), (64, 128), (256, 512), (1024, 1024)]


def drawn(shape, bits):
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))


def signed(codes, bits):
    return (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def require_alike(bits):
    if not reads_widths(bits):
        pytest.skip("compressed-tensors before 0.18 puts whole codes into words, whatever their bits")


@pytest.mark.parametrize("bits", range(1, 9))
def test_both_packers_write_the_same_bits(bits):
    require_alike(bits)
    for shape in SHAPES:
        codes = drawn(shape, bits)
        words = pack_to_int32(signed(codes, bits), bits)
        assert words.shape == (shape[0], math.ceil(shape[1] * bits / 32))
        theirs, ours = words.contiguous().view(torch.uint8), pack(codes, bits)
        assert torch.equal(theirs[:, : ours.shape[1]], ours)
        assert not theirs[:, ours.shape[1] :].any()  # what fills the last word
        assert torch.equal(unpack(theirs[:, : ours.shape[1]].contiguous(), bits, shape[1]), codes)
        filled = torch.nn.functional.pad(ours, (0, -ours.shape[1] % 4)).view(torch.int32)
        assert torch.equal(unpack_from_int32(filled, bits, torch.Size(shape)), signed(codes, bits))


@pytest.mark.parametrize("rows", [33, 64, 100, 1024])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_are_packed_along_rows(rows, bits):
    codes, zero = drawn((rows, 64), bits), drawn((rows, 2), bits)
    found = tensors(Integer(codes, torch.ones(rows, 2), zero, bits, 32), None)["weight_zero_point"]
    assert found.shape == (math.ceil(rows * bits / 32), 2)
    assert torch.equal(unpack_from_int32(found, bits, zero.shape, packed_dim=0), signed(zero, bits))
    theirs = found.T.contiguous().view(torch.uint8)
    assert torch.equal(unpack(theirs[:, : math.ceil(rows * bits / 8)].contiguous(), bits, rows), zero.T)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [0, 128])
def test_its_compressor_makes_the_same_tensors_and_reads_ours(bits, group, symmetric):
    require_alike(bits)
    rows, columns = 96, 512
    groups = columns // group if group else 1
    scale = 2.0 ** torch.randint(-9, -5, (rows, groups), generator=torch.Generator().manual_seed(group))
    form = Integer(drawn((rows, columns), bits), scale, None if symmetric else drawn((rows, groups), bits), bits, group)
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=bits, symmetric=symmetric, **strategy))
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    zero = torch.zeros(rows, groups, dtype=torch.int8) if form.zero is None else signed(form.zero, bits)
    theirs = compressor.compress({"weight": form.dense(), "weight_scale": scale, "weight_zero_point": zero}, scheme=scheme)
    ours = tensors(form, None)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name
    assert torch.equal(compressor.decompress(dict(ours), scheme=scheme)["weight"], form.dense())


@pytest.mark.parametrize("bits", range(2, 9))
def test_words_do_not_depend_on_the_version(bits):
    """Bit by bit: the lowest first, code after code."""
    codes = drawn((3, 37), bits)
    words = tensors(Integer(codes, torch.ones(3, 1), None, bits, 0), None)["weight_packed"]
    stream = [[int(word) >> place & 1 for word in row for place in range(32)] for row in words]
    wanted = [[int(code) >> place & 1 for code in row for place in range(bits)] for row in codes]
    assert [row[: 37 * bits] for row in stream] == wanted


def test_widths_that_its_reader_does_not_take_are_not_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr("modicum.export.hf.reads_widths", lambda bits: 32 % bits == 0)
    model, batches = zoo.build("llama")
    with pytest.raises(SettingError, match="on no layer of this model"):
        modicum.fit(model, data=batches, target="transformers", out=tmp_path / "out", method="nearest bits=3 group=32")


@pytest.mark.parametrize("shape", FOURS)
def test_four_bit_floats_are_packed_alike(shape):
    codes = drawn(shape, 4)
    ours = tensors(Float4(codes, torch.ones(shape[0], shape[1] // 16).to(torch.float8_e4m3fn), LAYOUTS["nvfp4"], 0, torch.bfloat16), None)
    values = LAYOUTS["nvfp4"].decode(codes).bfloat16()
    assert torch.equal(ours["weight_packed"], pack_fp4_to_uint8(values))
    assert torch.equal(ours["weight_packed"], pack(codes, 4))
    read = unpack_fp4_from_uint8(ours["weight_packed"], *shape)
    assert torch.equal(read, values) and torch.equal(read.signbit(), values.signbit())
    assert torch.equal(unpack(ours["weight_packed"], 4, shape[1]), codes)
