import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modicum.core.errors import ModelError
from modicum.forms import Coded, rans, restore


def drawn(count, seed=0):
    """Numbers of Gaussians, and the tables of their deviations."""
    chance = np.random.default_rng(seed)
    tables = chance.integers(0, rans.TABLES, count).astype(np.uint8)
    numbers = np.round(chance.normal(size=count) * 2.0 ** (rans.FIRST + tables / rans.STEPS))
    return np.clip(numbers, -rans.reaches()[tables], rans.reaches()[tables]).astype(np.int8), tables


def twin(numbers, tables, power, free):
    """One lane, one number at a time, in whole numbers of any size: the words that come out, none before the ``free`` first, and the state."""
    state, words = 1 << power, []
    for step, (number, table) in enumerate(zip(numbers[::-1].tolist(), tables[::-1].tolist())):
        often = rans.frequencies()[table].tolist()
        share, start = often[number + rans.TOP], sum(often[: number + rans.TOP])
        if step >= free and state >= share << 20:
            words.append(state & 0xFFFF)
            state >>= 16
        state = (state // share << 12) + state % share + start
    return state, words[::-1]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 99))
def test_numbers_come_back_from_any_number_of_lanes(count, lanes, seed):
    numbers, tables = drawn(count, seed)
    coded, free = rans.encode(numbers, tables, lanes)
    stream = np.frombuffer(coded + b"rest", dtype=np.uint8)
    assert np.array_equal(rans.decode(stream, tables, lanes, free=free), numbers)


def test_one_lane_is_that_of_the_textbook():
    numbers, tables = drawn(500)
    coded, free = rans.encode(numbers, tables, 1)
    power = next(power for power in range(17) if twin(numbers[-free:], tables[-free:], power, free)[0] >= 1 << 16)
    state, words = twin(numbers, tables, power, free)
    assert 0 < free <= 7 and power < 16
    assert coded == state.to_bytes(4, "little") + b"".join(word.to_bytes(2, "little") for word in words)


def test_a_stream_of_no_free_steps_as_earlier_versions_wrote_it_is_read():
    numbers, tables = drawn(500)
    state, words = twin(numbers, tables, 16, 0)
    stream = state.to_bytes(4, "little") + b"".join(word.to_bytes(2, "little") for word in words)
    assert np.array_equal(rans.decode(np.frombuffer(stream, dtype=np.uint8), tables, 1), numbers)


def test_a_stream_is_as_long_as_its_numbers_are_rare():
    numbers, tables = drawn(200_000)
    ideal = float(rans.costs()[tables, numbers.astype(int) + rans.TOP].sum()) / 8
    for lanes in (1, 64):
        assert ideal < len(rans.encode(numbers, tables, lanes)[0]) <= ideal + 2.5 * lanes + 4


def test_tables_lose_little_against_the_entropy_of_what_they_stand_for():
    numbers, tables = drawn(2_000_000)
    for table in range(0, rans.TABLES - 4):
        own = numbers[tables == table].astype(int) + rans.TOP
        shares = np.bincount(own)[np.bincount(own) > 0] / len(own)
        entropy = -(shares * np.log2(shares)).sum()
        assert rans.costs()[table, own].mean() < entropy * 1.02 + 0.01, table


def test_tables_are_whole_numbers_that_every_processor_finds_alike():
    found = rans.frequencies()
    assert (found.sum(1) == 4096).all() and found.min() == 0 and np.array_equal((found > 0).sum(1), 2 * rans.reaches() + 1)
    digest = lambda part: hashlib.sha256(part.astype("<u2").tobytes()).hexdigest()
    assert digest(found[: rans.TABLES]) == "32a4675169bc13242f5c20f95aa63e2e57d6a525c155d57893cabf31b3a4d441"
    assert digest(found[rans.TABLES :]) == "4209b9287e8dfa82bccb88756ff59440282b0090f3495f333c4a4dbe3ebab1cc"


@pytest.mark.parametrize("spoil", [lambda s: s[:40], lambda s: s[:-2], lambda s: s ^ np.uint8(1), lambda s: np.roll(s, 2)])
def test_a_spoiled_stream_is_told(spoil):
    numbers, tables = drawn(400)
    coded, free = rans.encode(numbers, tables, 8)
    with pytest.raises(ValueError, match="stream|lanes"):
        rans.decode(spoil(np.frombuffer(coded, dtype=np.uint8)), tables, 8, free=free)


def test_codes_beyond_the_stream_are_refused_and_small_streams_of_large_matrices_too():
    codes = torch.randint(-9, 10, (16, 64)).to(torch.int8)
    form = Coded(codes, 1.0, torch.full((16,), 24, dtype=torch.int16), torch.zeros(64, dtype=torch.int16), 2.0, torch.float32)
    with pytest.raises(ValueError, match="do not go into a stream of 275"):
        form.tensors()
    with pytest.raises(ModelError, match="bits per weight are not from"):
        restore(
            {"kind": "coded", "shape": [2**30, 2**30], "dtype": "float32", "bits": 1e-17}, {"stream": torch.zeros(21, dtype=torch.uint8)}
        )
