import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modicum.core.errors import ModelError, SettingError
from modicum.core.ggml import TYPES
from modicum.core.unit import Stats
from modicum.forms import (
    Activated,
    Blockwise,
    Chained,
    Codebook,
    Coded,
    Cut,
    Dense,
    Float4,
    Float6,
    Float8,
    Ggml,
    Half,
    Integer,
    LowRank,
    Masked,
    Nested,
    Pooled,
    Shared,
    Sum,
    restore,
)  # fmt: skip
from modicum.forms.activated import Rounding
from modicum.forms.blockwise import Doubled
from modicum.forms.codebook import Vectors
from modicum.forms.coded import exact_scale
from modicum.forms.lift import on_dense
from modicum.forms.minifloat import LAYOUTS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def dense(shape, dtype=torch.float32):
    return Dense(torch.randn(shape).to(dtype))


def float8(shape, dtype=torch.float32):
    return Float8(torch.randn(shape).to(torch.float8_e4m3fn), torch.rand(shape[0], 1).to(dtype))


def float4(shape, dtype=torch.float32, layout="nvfp4"):
    layout = LAYOUTS[layout]
    groups = (shape[0], -(-shape[1] // layout.group))
    scale = torch.rand(groups).to(layout.stored) if layout.name == "nvfp4" else torch.randint(118, 126, groups, dtype=torch.uint8)
    cls = Float4 if layout.bits == 4 else Float6
    return cls(torch.randint(0, 2**layout.bits, shape, dtype=torch.uint8), scale, layout, 8 if layout.name == "nvfp4" else 0, dtype)


def mxfp6(shape, dtype=torch.float32):
    return float4(shape, dtype, "mxfp6_e2m3")


def e3m2(shape, dtype=torch.float32):
    return float4(shape, dtype, "mxfp6_e3m2")


def mxfp4(shape, dtype=torch.float32):
    return float4(shape, dtype, "mxfp4")


def ggml(shape, dtype=torch.float32, type="q6_k"):
    blocks = torch.randint(0, 256, (shape[0], TYPES[type].row_bytes(shape[1])), dtype=torch.uint8)
    blocks.view(-1, TYPES[type].bytes)[:, -2:] = torch.tensor([0, 44], dtype=torch.uint8)  # a step of 1/16
    return Ggml(blocks, type, shape, dtype)


def blockwise(shape, dtype=torch.float32, type="nf4", block=5):
    return Blockwise(torch.randint(0, 16, shape, dtype=torch.uint8), torch.rand(shape[0], -(-shape[1] // block)), type, block, dtype)


def doubled(shape, dtype=torch.float32):
    plain = blockwise(shape, dtype, "fp4", 3)
    count = plain.scale.numel()
    scale = Doubled(torch.randint(0, 256, plain.scale.shape, dtype=torch.uint8), torch.rand(-(-count // 256)), torch.rand(1))
    return Blockwise(plain.codes, scale, "fp4", 3, dtype)


def half(shape, dtype=torch.float32):
    return Half(torch.randn(shape).half(), torch.rand(shape[0], 1).to(dtype))


def low_rank(shape, dtype=torch.float32, rank=2):
    return LowRank(torch.randn(shape[0], rank).to(dtype), torch.randn(rank, shape[1]).to(dtype))


def masked(shape, dtype=torch.float32, share=0.5):
    return Masked.of(torch.randn(shape).to(dtype), torch.rand(shape) < share)


def integer(shape, dtype=torch.float32, bits=4, group=0, symmetric=False):
    groups = 1 if group <= 0 else -(-shape[1] // group)
    rows = 1 if group < 0 else shape[0]
    zero = None if symmetric else torch.randint(0, 2**bits, (rows, groups), dtype=torch.uint8)
    scale = torch.rand(rows, groups).add(0.1).to(dtype)
    return Integer(torch.randint(0, 2**bits, shape, dtype=torch.uint8), scale, zero, bits, group)


def coded(shape, dtype=torch.float32, bits=16):
    rows, columns, raised = torch.randint(8, 12, shape[:1]), torch.randint(-2, 3, shape[1:]) * 2, torch.randint(-2, 3, shape[:1]) * 2
    codes, sides = torch.randint(-2, 3, shape).to(torch.int8), [side.to(torch.int16) for side in (rows, columns, raised)]
    return Coded(codes, 0.37, sides[0], sides[1], bits, dtype, sides[2])


def codebook(shape, dtype=torch.float32, layout=None):
    layout = layout or Vectors(3, 2, 2, 4)
    codes = torch.randint(0, 2**layout.bits, (shape[0], layout.stages, layout.count(shape[1])), dtype=torch.uint8)
    return Codebook(codes, torch.randn(layout.tables(shape[1])).half(), torch.rand(shape[0], 1).to(dtype), layout, shape[1], dtype)


def nested(shape, dtype=torch.float32, bits=3, group=5, scales=6, symmetric=False):
    plain = integer(shape, dtype, bits, group, symmetric)
    top = 2 ** (scales - 1)
    steps = torch.randint(1 - top, top, plain.scale.shape, dtype=torch.int8)
    return Nested.of(plain, steps, torch.rand(shape[0], 1).add(0.1).to(dtype), scales)


def n_of_m(shape, dtype=torch.float32):
    return Masked.of(torch.randn(shape).to(dtype), (torch.arange(shape[1]) % 4 < 2).expand(shape).contiguous())


def cut(shape, dtype=torch.float32, make=integer):
    rows, columns = torch.rand(shape[0]) < 0.7, torch.rand(shape[1]) < 0.7
    rows[0] = columns[0] = True
    return Cut(make((int(rows.sum()), int(columns.sum())), dtype), rows, columns)


def cut_of_sum(shape, dtype=torch.float32):
    return cut(shape, dtype, lambda inner, dtype: Sum((integer(inner, dtype, 3, 2), low_rank(inner, dtype))))


def one_sided(shape, dtype=torch.float32):
    columns = torch.arange(shape[1]) % 3 != 1
    return Cut(masked((shape[0], int(columns.sum())), dtype), None, columns)


def repaired(shape, dtype=torch.float32):
    return Sum((integer(shape, dtype, 2, 8), low_rank(shape, dtype)))


def sum_of_cuts(shape, dtype=torch.float32):
    return Sum((cut(shape, dtype), low_rank(shape, dtype), dense(shape, dtype)))


def activated(shape, dtype=torch.float32, format="int8"):
    inner = integer(shape, dtype, 8, symmetric=True) if format == "int8" else float8(shape, dtype)
    return Activated(inner, Rounding(format, torch.tensor([0.05]).to(dtype) if shape[1] % 2 else None))


def activated4(shape, dtype=torch.float32):
    return Activated(float4(shape, dtype), Rounding("nvfp4", torch.tensor([400.0])))


def cut_activated(shape, dtype=torch.float32):
    return cut(shape, dtype, lambda inner, dtype: activated(inner, dtype, "fp8"))


def pooled(shape, dtype=torch.float32, chunk=3):
    length = 2 * chunk
    return Pooled(
        Dense(torch.randn(1, length + 1).to(dtype)), shape, torch.tensor([0.7]), at=5, first=1, length=length, chunk=chunk, seed=4
    )


def chained(shape, dtype=torch.float32):
    (i, p), (j, q) = ((side, 1) if side % 2 else (2, side // 2) for side in shape)
    left, centre, right = torch.randn(i * j, 2), torch.randn(2, 3), torch.randn(3, p * q)
    return Chained(Dense(left.to(dtype)), Dense(centre.to(dtype)), Dense(right.to(dtype)), ((i, j), (1, 1), (p, q)))


TAKING = [activated, activated4, cut_activated]
KINDS = [
    *TAKING,
    dense,
    float4,
    mxfp4,
    mxfp6,
    e3m2,
    blockwise,
    doubled,
    float8,
    half,
    low_rank,
    masked,
    integer,
    coded,
    codebook,
    nested,
    n_of_m,
    cut,
    cut_of_sum,
    one_sided,
    repaired,
    sum_of_cuts,
    pooled,
    chained,
]
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 33))


def check(form, shape, dtype):
    """Every promise of a form at once."""
    tensors = form.tensors()
    value = form.dense()
    assert form.shape == shape and form.dtype == dtype
    assert value.shape == shape and value.dtype == dtype
    assert form.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert form.outline == {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    described = json.loads(json.dumps(form.describe()))
    again = restore(described, {name: tensor.clone() for name, tensor in tensors.items()})
    assert type(again) is type(form) and torch.equal(again.dense(), value)
    assert again.describe() == form.describe() and again.values == form.values and again.nbytes == form.nbytes
    assert all(torch.equal(tensor.view(torch.uint8), again.tensors()[name].view(torch.uint8)) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", KINDS)
@given(shape=SHAPES)
def test_every_kind_knows_its_bytes_and_comes_back(make, dtype, shape):
    check(make(shape, dtype), shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_come_back_and_rows_of_them_are_the_form_of_those_rows(dtype):
    form, order = ggml((4, 512), dtype), torch.tensor([2, 0, 2])
    check(form, (4, 512), dtype)
    assert form.nbytes == 4 * 2 * 210 and form.values == 2048
    assert torch.equal(Ggml(form.blocks[order], "q6_k", (3, 512), dtype).dense(), form.dense()[order])


def test_blocks_hold_zeros_where_they_have_a_level_for_them():
    form, where = ggml((2, 256)), torch.arange(512).view(2, 256) % 3 == 0
    zeroed = form.zeroed(where)
    assert not zeroed.dense()[where].any() and torch.equal(zeroed.dense()[~where], form.dense()[~where]) and zeroed.nbytes == form.nbytes
    for type in ("q4_k", "iq4_xs"):
        with pytest.raises(ModelError, match="of kind ggml, it cannot hold entries at zero"):
            ggml((2, 256), type=type).zeroed(where)


@given(SHAPES, st.integers(1, 8), st.integers(-1, 40), st.booleans())
def test_integers_of_every_grid_come_back(shape, bits, group, symmetric):
    group = 0 if group > shape[1] else group
    form = integer(shape, torch.float16, bits, group, symmetric)
    check(form, shape, torch.float16)
    # Twin: one entry at a time.
    for row, column in ((0, 0), (shape[0] - 1, shape[1] - 1)):
        at = (0 if group < 0 else row, column // group if group > 0 else 0)
        zero = 2 ** (bits - 1) if symmetric else int(form.zero[at])
        expected = torch.tensor(float(int(form.codes[row, column]) - zero)).half() * form.scale[at]
        assert form.dense()[row, column] == expected


@pytest.mark.parametrize("make", KINDS)
@given(shape=SHAPES, lead=st.sampled_from([(), (1,), (2, 3)]))
def test_product_is_that_of_the_dense_value(make, shape, lead):
    form, inputs = make(shape), torch.randn(*lead, shape[1])
    assert (form.rounding is not None) == (make in TAKING)
    expected = (inputs if form.rounding is None else form.rounding(inputs)).double() @ form.dense().double().T
    assert form.product(inputs).shape == expected.shape
    torch.testing.assert_close(form.product(inputs).double(), expected, rtol=1e-4, atol=1e-4)


def test_values_count_what_is_stored():
    shape = (6, 10)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[0, :7] = True
    rows, columns = torch.arange(6) < 4, torch.arange(10) < 5
    assert dense(shape).values == integer(shape).values == float8(shape).values == 60
    assert Masked.of(torch.ones(shape), mask).values == 7
    assert low_rank(shape, rank=2).values == 32 and low_rank(shape, rank=2).rank == 2
    assert Cut(dense((4, 5)), rows, columns).values == 20
    assert repaired(shape).values == 92


def test_bytes_of_known_forms():
    assert integer((3, 9), torch.float16, bits=3, group=4).nbytes == 3 * 4 + 3 * 3 * 2 + 3 * 2  # codes, scales, zero points
    assert integer((3, 9), torch.bfloat16, bits=4, group=0, symmetric=True).nbytes == 3 * 5 + 3 * 2
    assert Masked.of(torch.ones(4, 9, dtype=torch.float16), torch.eye(4, 9).bool()).nbytes == 4 * 2 + 4 * 2
    assert Cut(dense((2, 3)), torch.tensor([1, 0, 1]).bool(), torch.tensor([1, 1, 1, 0]).bool()).nbytes == 24 + 1 + 1


def test_cut_is_zero_outside_what_remains():
    rows, columns = torch.tensor([1, 0, 1]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    value = Cut(Dense(torch.ones(2, 2)), rows, columns).dense()
    assert torch.equal(value, (rows[:, None] & columns).float())


def test_sum_adds_in_float32_and_rounds_once():
    parts = (Dense(torch.full((1, 1), 256.0, dtype=torch.bfloat16)), *(Dense(torch.ones(1, 1, dtype=torch.bfloat16)) for _ in range(4)))
    assert float(Sum(parts).dense()) == 260.0  # one by one in bfloat16 it stays 256


@given(shape=SHAPES, bits=st.integers(1, 8), dimension=st.integers(1, 5), stages=st.integers(1, 3), groups=st.integers(0, 3))
def test_codebooks_of_every_kind_come_back(shape, bits, dimension, stages, groups):
    form = codebook(shape, layout=Vectors(bits, dimension, stages, groups * dimension))
    check(form, shape, torch.float32)
    row, column = shape[0] - 1, shape[1] - 1  # twin: one entry
    group = column // (groups * dimension) if groups else 0
    entries = [form.tables[group, stage, int(form.codes[row, stage, column // dimension]), column % dimension] for stage in range(stages)]
    torch.testing.assert_close(form.dense()[row, column], sum(entry.float() for entry in entries) * form.scale[row, 0])


def test_scales_under_scales_are_products_rounded_once_and_zeros_are_held():
    form, where = nested((6, 13), torch.bfloat16), torch.rand(6, 13) < 0.4
    wide = (form.outer.float() * form.steps).to(torch.bfloat16).repeat_interleave(5, 1)[:, :13]
    zero = form.zero.repeat_interleave(5, 1)[:, :13].bfloat16()
    assert torch.equal(form.dense(), (form.codes.bfloat16() - zero) * wide)
    assert not form.zeroed(where).dense()[where].any() and form.zeroed(where).nbytes == form.nbytes
    assert nested((6, 13), torch.float16, 3, 5, 6, True).nbytes == 6 * 5 + 6 * 3 + 6 * 2  # codes, steps of 6 bits, scales of rows


def test_transposed_weights_are_stored_contiguously():
    form = Dense(torch.arange(6.0).view(2, 3).T)
    assert form.tensors()["weight"].is_contiguous()
    assert torch.equal(restore(form.describe(), form.tensors()).dense(), form.dense())


# What does not fit together


def broken(make, **changed):
    """Description and tensors of a form with some parts exchanged or, where None, missing."""
    torch.manual_seed(0)
    form = make((4, 6))
    changed = {name.replace("__", "."): value for name, value in changed.items()}
    merge = lambda found: {name: value for name, old in found.items() if (value := changed.get(name, old)) is not None}
    return merge(form.describe()), merge(form.tensors())


BROKEN = [
    broken(dense, kind="dens"),
    broken(dense, kind=None),
    broken(dense, shape=[4, 7]),
    broken(dense, shape=[4]),
    broken(dense, shape="4x6"),
    broken(dense, dtype=None),
    broken(dense, dtype="nothing"),
    broken(dense, dtype="nn"),
    broken(dense, weight=None),
    broken(dense, weight=torch.ones(6, 4)),
    broken(integer, bits=None),
    broken(integer, bits=5),
    broken(integer, bits="four"),
    broken(integer, codes=torch.zeros(4, 4, dtype=torch.uint8)),
    broken(integer, scale=None),
    broken(integer, scale=torch.ones(3, 1)),
    broken(integer, scale=torch.ones(4)),
    broken(integer, zero=torch.zeros(3, 1, dtype=torch.uint8)),
    broken(mxfp6, layout="mxfp4"),
    broken(mxfp6, codes=torch.zeros(4, 3, dtype=torch.uint8)),
    broken(activated4, scale=None),
    broken(blockwise, type="nf5"),
    broken(blockwise, block=0),
    broken(blockwise, scale=torch.ones(4, 3)),
    broken(blockwise, scale=torch.ones(4, 2, dtype=torch.float64)),
    broken(doubled, steps=torch.zeros(4, 3, dtype=torch.uint8)),
    broken(doubled, outer=torch.ones(2)),
    broken(doubled, offset=None),
    broken(low_rank, left=torch.ones(4, 3)),
    broken(low_rank, right=None),
    broken(masked, mask=torch.zeros(4, 2, dtype=torch.uint8)),
    broken(masked, values=torch.ones(23)),
    broken(float8, scale=torch.ones(3, 1)),
    broken(half, scale=torch.ones(3, 1)),
    broken(half, halves=torch.ones(4, 6)),
    broken(coded, bits=None),
    broken(coded, bits=0.01),
    broken(coded, bits=15),
    broken(coded, stream=None),
    broken(coded, stream=torch.zeros(68, dtype=torch.uint8)),
    broken(coded, stream=torch.full((68,), 255, dtype=torch.uint8)),
    broken(coded, stream=torch.zeros(9, dtype=torch.uint8)),
    broken(nested, scales=9),
    broken(nested, group=0),
    broken(nested, steps=None),
    broken(nested, scale=torch.ones(4, 2)),
    broken(codebook, dimension=0),
    broken(codebook, columns=3),
    broken(codebook, stages=9),
    broken(codebook, bits=4),
    broken(codebook, tables=torch.zeros(2, 2, 8, 2)),
    broken(codebook, scale=torch.ones(4)),
    broken(activated, inputs="int2"),
    broken(activated, inner=None),
    broken(lambda _: activated((4, 5)), scale=torch.ones(2)),
    broken(lambda _: activated((4, 5)), scale=torch.zeros(1)),
    broken(lambda _: ggml((4, 256)), type="q5_k"),
    broken(lambda _: ggml((4, 256)), type=[]),
    broken(lambda _: ggml((4, 256)), shape=[4, 255]),
    broken(lambda _: ggml((4, 256)), blocks=torch.zeros(4, 210)),
    broken(cut, rows=None),
    broken(cut, inner=None),
    broken(cut, inner={}),
    broken(cut, inner=[]),
    broken(cut, inner__codes=None),
    broken(repaired, parts=[]),
    broken(repaired, parts=7),
]
# Accepted today, with another value than was saved or a traceback instead of a sentence.
ESCAPES = [
    broken(masked, values=torch.ones(1)),  # one value spreads over the whole mask
    broken(integer, zero=torch.zeros(1, 1, dtype=torch.uint8)),  # one zero point spreads over all rows
    broken(float8, codes=torch.ones(4, 6)),  # codes of four bytes each
    ({**Cut(Dense(torch.ones(4, 1)), None, torch.eye(6)[0].bool()).describe()},
     {"inner.weight": torch.ones(4, 1), "columns": torch.tensor([[7]], dtype=torch.uint8)}),  # one column spreads over three
    broken(integer, bits=float("inf")),
    broken(dense, shape=[4, float("inf")]),
    ({"kind": []}, {}),
    ([], {}),
]  # fmt: skip


@pytest.mark.parametrize(
    "described, tensors",
    [*BROKEN, *ESCAPES],
)
def test_parts_that_do_not_fit_are_refused(described, tensors):
    with pytest.raises(ModelError, match="Write the file anew"):
        restore(described, tensors)


# Reaching the weight inside a form


def test_a_function_of_the_weight_sees_what_remains_of_a_cut():
    weight, columns, rows = torch.randn(3, 5), torch.tensor([1, 0, 1, 1, 0]).bool(), torch.tensor([1, 1, 0]).bool()
    covariance = torch.arange(25.0).view(5, 5)
    stats = Stats(count=3, total=torch.arange(5.0), square=torch.arange(5.0), covariance=covariance, inputs=[torch.ones(2, 5)])

    def twice(inner, seen):
        assert inner.shape == (2, 3) and seen.inputs[0].shape == (2, 3) and seen.count == 3
        assert torch.equal(seen.total, torch.tensor([0.0, 2.0, 3.0])) and torch.equal(seen.square, seen.total)
        assert torch.equal(seen.covariance, covariance[columns][:, columns])
        return Dense(2 * inner)

    form = on_dense(Cut(Dense(weight[rows][:, columns]), rows, columns), stats, twice, "double")
    assert isinstance(form, Cut)
    assert torch.equal(form.dense(), 2 * weight * (rows[:, None] & columns))


@pytest.mark.parametrize("make", [integer, masked, low_rank, repaired, float8, cut])
def test_a_form_that_is_no_longer_dense_is_refused(make):
    with pytest.raises(SettingError, match=r"double: must come before .* left it \w+\. Put double first"):
        on_dense(make((4, 6)), Stats(), lambda weight, _: Dense(2 * weight), "double")


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_a_scale_times_a_step_of_rows_is_a_number_of_the_dtype(dtype, digits):
    for number in range(2 ** (digits - 1), 2**digits + 1):
        for raised in (torch.zeros(3), torch.tensor([-2.0, 0.0, 2.0])):
            scale = exact_scale(number / 1000, dtype, raised)
            products = scale * torch.tensor([1.0, 1.5], dtype=torch.float64)[: 1 + bool(raised.any())]
            assert torch.equal(products.to(dtype).double(), products) and abs(scale / (number / 1000) - 1) < 2.0 ** (2 - digits)


def test_a_pool_as_large_as_a_weight_is_that_weight_and_a_smaller_one_is_used_evenly():
    pool = torch.arange(1, 25.0)[None]
    whole = Pooled(Dense(pool), (4, 6), torch.ones(1), at=0, first=0, length=24, chunk=4, seed=1)
    assert torch.equal(whole.dense().reshape(1, -1), pool)
    small = Pooled(Dense(pool), (4, 6), torch.ones(1), at=0, first=8, length=8, chunk=4, seed=1).dense().reshape(-1)
    assert torch.equal(small[:8], pool[0, 8:16]) and bool((small < 0).any())
    assert torch.equal(small.abs().sort().values, pool[0, 8:16].repeat_interleave(3)), "each three times"
    parts = [Pooled(Dense(pool), (1, 6), torch.ones(1), at=6 * row, first=8, length=8, chunk=4, seed=1).dense() for row in range(4)]
    assert torch.equal(torch.cat(parts).reshape(-1), small), "rows alone are rows of the whole"


def test_what_is_shared_has_a_value_where_it_is_at_hand():
    leaf = Shared("x", (1, 3), torch.float32, torch.arange(4.0)[None])
    assert leaf.dense().tolist() == [[0, 1, 2]] and leaf.nbytes == 0
    assert torch.equal(pickle.loads(pickle.dumps(leaf)).dense(), leaf.dense())
    with pytest.raises(ModelError, match="lies beside the forms"):
        Shared("x", (1, 3), torch.float32).dense()


@pytest.mark.parametrize("wrong", [{"length": 7}, {"first": 30}, {"chunk": 0}, {"seed": -1}, {"at": -1}, {"shape": [1 << 14, 1 << 13]}])
def test_a_pool_that_does_not_fit_is_told(wrong):
    form = pooled((4, 6))
    with pytest.raises(ModelError, match="must fit together"):
        restore(form.describe() | wrong, form.tensors())


def test_a_chain_that_does_not_fit_is_told():
    form = chained((4, 6))
    for wrong in ({"sides": [[4, 6], [1, 1], [1, 2]]}, {"sides": [[0, 1], [1, 1], [1, 1]]}, {"sides": "x"}):
        with pytest.raises(ModelError, match="must fit together"):
            restore(form.describe() | wrong, form.tensors())
