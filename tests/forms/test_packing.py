import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modicum.forms.packing import pack, packed_bytes, unpack


def naive(codes, bits):
    """Bytes of rows of codes, through text: every code's bits from the lowest, every byte's bits from the lowest."""
    rows = []
    for row in codes.tolist():
        text = "".join(format(code, f"0{bits}b")[::-1] for code in row)
        text += "0" * (-len(text) % 8)
        rows.append([int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8)])
    return torch.tensor(rows, dtype=torch.uint8).reshape(len(codes), -1)


@st.composite
def coded(draw):
    bits = draw(st.integers(1, 8))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 35))
    codes = draw(st.lists(st.integers(0, 2**bits - 1), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(codes, dtype=torch.uint8).view(rows, columns), bits


@given(coded())
def test_codes_are_packed_lowest_bit_first_and_come_back(case):
    codes, bits = case
    packed = pack(codes, bits)
    assert torch.equal(packed, naive(codes, bits))
    assert packed.nbytes == packed_bytes(codes.shape, bits)
    assert torch.equal(unpack(packed, bits, codes.shape[1]), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_may_lie_anywhere_and_be_many(bits):
    codes = torch.randint(0, 2**bits, (3 + 600 * 1024,), generator=torch.Generator().manual_seed(bits)).to(torch.uint8)
    wide = codes[3:].view(600, 1024)  # more than are packed at a time, at an odd place
    for given_codes in (wide, wide.T, wide[:, 5:77], wide[::3, ::2]):
        packed = pack(given_codes, bits)
        assert torch.equal(packed, pack(given_codes.clone(memory_format=torch.contiguous_format), bits))
        assert torch.equal(unpack(packed, bits, given_codes.shape[1]), given_codes)
        assert torch.equal(packed[:7], naive(given_codes[:7], bits))


@pytest.mark.parametrize(
    "packed, bits, columns",
    [
        (torch.zeros(2, 3, dtype=torch.uint8), 0, 3),
        (torch.zeros(2, 3, dtype=torch.uint8), 9, 3),
        (torch.zeros(2, 3, dtype=torch.uint8), 4, 4),
        (torch.zeros(2, 3, dtype=torch.uint8), 4, 7),
        (torch.zeros(6, dtype=torch.uint8), 4, 6),
        (torch.zeros(2, 3), 8, 3),
    ],
)
def test_bytes_that_do_not_fit_are_refused(packed, bits, columns):
    with pytest.raises(ValueError, match="do not hold rows of"):
        unpack(packed, bits, columns)
