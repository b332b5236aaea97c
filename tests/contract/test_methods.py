"""Every method that treats units one by one, against every promise it makes. A new method is held to them by existing."""

import copy
import dataclasses
import doctest
import importlib
import inspect
import random
import re
from typing import get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from modicum.core.errors import SettingError
from modicum.core.method import Need, registry
from modicum.core.option import Option
from modicum.core.unit import Site, Unit
from modicum.forms import Activated, Blockwise, Codebook, Coded, Cut, Dense, Float4, Float6, Float8, Ggml, Half, Integer, Sum
from modicum.quantize import Nearest
from modicum.repair import Refine

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BY_UNIT = ("quantize", "prune", "factor", "repair")

# What each family is tried with; a method without such a setting is left out of that line.
TRIED = {
    "quantize": [
        {},
        {"bits": 2, "group": 32},
        {"bits": 3, "group": 20, "symmetric": True},
        {"bits": 3, "group": 16, "scales": 6},
        {"group": 0},
        {"group": -1},
        {"rate": 2.0},
        {"scale": "static"},
        {"type": "q4_0"},
        {"levels": "fp4", "double": True},
        {"rounding": "nearest", "block": 32},
        {"bits": 4, "dimension": 4, "stages": 2, "columns": 48},
    ],
    "prune": [{}, {"keep": 0.3}, {"pattern": "2:4"}],
    "factor": [{}, {"rank": 3}],
    "repair": [{}, {"rank": 3}, {"rank": 3, "factors": 6}],
}
# The budget that is already met.
MET = {
    "quantize": {"bits": 8, "rate": 6.0, "dimension": 1},
    "prune": {"keep": 1.0},
    "factor": {"rank": 24, "n": 1, "bond": 16},
    "repair": {"rank": 24},
}
# Relative error of weights that eight bits leave: an integer grid's step is uniform, a float's grows with the value, and that of coded numbers, which
# end at six bits, with what columns are worth less. Four-bit floats have no more than those.
EIGHT_BITS = {Integer: 0.012, Activated: 0.012, Codebook: 0.012, Coded: 0.05, Float8: 0.03, Half: 0.001, Float4: 0.15, Ggml: 0.012}
EIGHT_BITS[Blockwise], EIGHT_BITS[Float6] = EIGHT_BITS[Float4], 0.04


def by_unit():
    return {key: cls for key, cls in registry().items() if cls.family() in BY_UNIT}


def fitting(cls, settings):
    """The settings that the method has."""
    return {name: value for name, value in settings.items() if name in {field.name for field in dataclasses.fields(cls)}}


def cases():
    for key, cls in by_unit().items():
        for settings in TRIED[cls.family()]:
            if fitting(cls, settings) == settings:
                yield pytest.param(cls(**settings), id=f"{key} {settings}" if settings else key)


each_case = pytest.mark.parametrize("method", list(cases()))
each_method = pytest.mark.parametrize("cls", [pytest.param(cls, id=key) for key, cls in by_unit().items()])
every_method = pytest.mark.parametrize("cls", [pytest.param(cls, id=key) for key, cls in registry().items()])


def pipeline(method):
    """The steps with which a method is tried: a repair needs something to repair, and what treats inputs stands beside codes."""
    if method.wraps:
        return (Nearest(bits=8, group=0), method)
    return (Nearest(bits=3), method) if method.family() == "repair" else (method,)


_MADE = {}


def made(method, layer):
    """What a method makes of the layer that all are tried on: made once."""
    if method not in _MADE:
        _MADE[method] = layer().apply(*pipeline(method))
    return _MADE[method]


def same(one, other):
    left, right = one.tensors(), other.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8)) for name in left)


# What it does to a weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_method
def test_a_budget_already_met_changes_nothing(cls, dtype, layer):
    thing = layer(dtype=dtype)
    if cls is Refine:
        pytest.skip("it adds no bytes, so no budget of it is ever met")
    form = thing.apply(*pipeline(cls(**fitting(cls, MET[cls.family()]))))
    weight, value = thing.weight.double(), form.dense().double()
    bound = {
        "prune": 0.0,
        "quantize": EIGHT_BITS.get(type(form)),
        "factor": 2 * torch.finfo(dtype).eps,
        "repair": 4 * torch.finfo(dtype).eps,
    }
    if cls.family() == "repair" and dtype == torch.float32:
        bound["repair"] = 1e-4  # the way into the inputs' eigenspace and back
    assert float((value - weight).norm() / weight.norm()) <= bound[cls.family()]


@each_case
def test_less_is_stored(method, layer):
    thing, form = layer(), made(method, layer)
    assert form.nbytes < thing.unit.dense_bytes
    assert 0 < thing.error(form) < 1


@each_case
def test_same_seed_same_bits(method, layer):
    assert same(layer().apply(*pipeline(method)), made(method, layer))


@each_case
def test_hands_are_clean(method, layer):
    thing = layer()
    stats = thing.stats(method.needs)
    weight, before = thing.weight.clone(), copy.deepcopy(stats)
    chance = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    settings = dataclasses.astuple(method)
    thing.apply(*pipeline(method), stats=stats)
    assert torch.equal(thing.weight, weight) and dataclasses.astuple(method) == settings
    for field in dataclasses.fields(stats):
        was, now = getattr(before, field.name), getattr(stats, field.name)
        if isinstance(was, torch.Tensor):
            assert torch.equal(was, now), field.name
        elif field.name == "inputs" and was is not None:
            assert all(torch.equal(x, y) for x, y in zip(was, now, strict=True))
        elif field.name == "slopes" and was is not None:
            assert all(torch.equal(x, y) for x, y in zip(vars(was).values(), vars(now).values()) if isinstance(x, torch.Tensor))
        elif field.name not in ("cache", "events"):  # what is derived and said goes there
            assert was == now, field.name
    assert torch.equal(torch.get_rng_state(), chance[0]) and random.getstate() == chance[1]
    assert np.random.get_state()[1].tolist() == chance[2]  # noqa: NPY002


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_case
def test_shape_and_dtype_are_kept(method, dtype, layer):
    thing = layer(dtype=dtype)
    form = thing.apply(*pipeline(method))
    assert form.shape == thing.weight.shape and form.dtype == dtype and form.dense().dtype == dtype
    wide = {torch.float32} if isinstance(form, Blockwise) else set()  # bitsandbytes' own scales
    known = {dtype, torch.uint8, torch.float8_e4m3fn, torch.float16} | wide
    assert all(tensor.dtype in known for tensor in form.tensors().values())
    assert torch.isfinite(form.dense().float()).all()


# What methods that decide the rows of a column together do not keep while they do.
PERMUTED, SCALED = "permuted rows permute the answer", "scaled weights scale the answer"


@each_case
def test_permuted_rows_permute_the_answer(method, layer):
    other, order = layer(), torch.randperm(24)
    other.weight, other.felt = other.weight[order], other.felt[:, order]
    if PERMUTED in type(method).known_gaps:
        assert not torch.equal(other.apply(*pipeline(method)).dense(), made(method, layer).dense()[order])
        if not hasattr(method, "paths"):
            return  # it goes by places, always
        method = dataclasses.replace(method, paths=False)
    torch.testing.assert_close(other.apply(*pipeline(method)).dense(), made(method, layer).dense()[order], rtol=1e-3, atol=1e-3)


@each_case
def test_scaled_weights_scale_the_answer(method, layer):
    other = layer()
    other.weight = 4 * other.weight  # a power of two, so that no rounding differs
    stats = other.stats(method.needs)
    if SCALED in type(method).known_gaps:  # it does where what is felt of weights scales against them
        felt = stats.slopes
        stats.slopes = dataclasses.replace(felt, total=felt.total / 4, square=felt.square / 16, general=felt.general / 16)
    torch.testing.assert_close(other.apply(*pipeline(method), stats=stats).dense(), 4 * made(method, layer).dense(), rtol=1e-3, atol=1e-3)


@each_case
def test_what_is_declared_is_enough(method, layer):
    thing = layer()
    stats = thing.stats(method.needs)
    named = {"total": (Need.MEANS, Need.VARIANCES), "square": (Need.NORMS, Need.VARIANCES), "covariance": (Need.COVARIANCE,),
             "inputs": (Need.INPUTS,)}  # fmt: skip
    for name, needs in named.items():
        assert (getattr(stats, name) is not None) == bool(set(needs) & method.needs)
    assert thing.apply(*pipeline(method), stats=stats).shape == thing.weight.shape


# Where the weight comes from


STORED = {
    "expert": ((3, 24, 96), {"expert": 1}),
    "transposed expert": ((3, 96, 24), {"expert": 1, "transposed": True}),
    "conv1d": ((96, 24), {"transposed": True}),
    "convolution": ((24, 6, 4, 4), {}),
}


@pytest.mark.parametrize("kind", STORED)
@each_case
def test_every_kind_of_unit_is_treated_alike(method, kind, layer):
    thing = layer()
    shape, facts = STORED[kind]
    unit = Unit("u", "u", "m", kind.split()[-1], (24, 96), shape, torch.float32, **facts)
    stored = torch.zeros(shape)
    (stored if unit.expert is None else stored[unit.expert]).copy_(unit.stored(thing.weight))
    assert torch.equal(unit.matrix(stored), thing.weight)
    form = thing.apply(*pipeline(method), unit=unit, current=Dense(unit.matrix(stored)))
    torch.testing.assert_close(form.dense(), made(method, layer).dense(), rtol=1e-5, atol=1e-5)
    assert unit.stored(form.dense()).shape == (shape if unit.expert is None else shape[1:])


@pytest.mark.parametrize("sides", ["rows", "columns", "both"])
@each_case
def test_what_remains_of_a_cut_is_treated_or_refused(method, sides, layer):
    thing = layer()
    rows = torch.arange(24) % 4 != 1 if sides != "columns" else None
    columns = torch.arange(96) % 3 != 2 if sides != "rows" else None
    whole = lambda mask, size: torch.ones(size, dtype=torch.bool) if mask is None else mask
    there = whole(rows, 24)[:, None] & whole(columns, 96)
    inner = thing.weight[whole(rows, 24)][:, whole(columns, 96)]
    try:
        form = thing.apply(*pipeline(method), current=Cut(Dense(inner), rows, columns))
    except SettingError as error:
        assert method.key() in str(error)
        return
    assert form.shape == (24, 96)
    assert (form.parts[0] if isinstance(form, Sum) else form).kind == "cut"
    if method.family() != "repair":  # it gives back what it can of the reference
        assert not form.dense()[~there].any() and form.dense()[there].any()


@each_case
def test_units_of_one_site_are_treated_one_by_one(method, layer):
    things = {name: layer(seed=seed) for seed, name in enumerate("ab")}
    units = tuple(dataclasses.replace(thing.unit, name=name) for name, thing in things.items())
    stats = {name: thing.stats(method.needs) for name, thing in things.items()}
    current = {name: Dense(thing.weight) for name, thing in things.items()}
    change = Option(pipeline(method)).apply(Site("both", "fused", units), stats, current)
    assert change.forms.keys() == {"a", "b"} and not change.dropped and not change.biases
    assert all(same(change.forms[name], thing.apply(*pipeline(method))) for name, thing in things.items())


# Without data, and before any work


@each_case
def test_the_stand_in_needs_no_data_and_stores_as_much(method, layer):
    thing = layer()
    found = Option(pipeline(method)).without_data()
    if found is None:
        assert not method.data_free()
        return
    ours, theirs = made(method, layer), thing.apply(*found.steps, stats=thing.stats(set()))
    # Shares are rounded per row, per block or per tensor.
    slack = 4 * 24 if method.family() == "prune" and getattr(method, "pattern", None) is None else 0
    assert abs(ours.nbytes - theirs.nbytes) <= slack


@each_case
def test_the_blueprint_stores_as_much(method, layer):
    if not hasattr(method, "blueprint"):
        pytest.skip("none is offered")
    thing, plan = layer(), method.blueprint()
    zeros = layer()
    zeros.weight = torch.zeros_like(thing.weight)
    assert zeros.apply(plan).nbytes == thing.apply(method).nbytes and plan.data_free()


# What it says of itself


@st.composite
def settings_of(draw, cls):
    """Settings within their bounds."""
    hints, values = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        between, choices = field.metadata["between"], field.metadata["choices"]
        kinds = getattr(hints[field.name], "__args__", (hints[field.name],))
        options = [st.just(field.default)]
        if choices is not None:
            options.append(st.sampled_from(choices))
        elif field.name == "blocks" and str in kinds:
            options.append(st.sampled_from(["10", "0110"]))
        elif field.metadata["metavar"] == "PATTERN":
            options.append(st.sampled_from(["*", "layers.1.*"]))
        elif field.name == "pattern":
            options.append(st.sampled_from(["1:4", "2:4", "4:8"]))
        elif bool in kinds:
            options.append(st.booleans())
        elif int in kinds:
            options.append(st.integers(*(between or (0, 9))))
        elif float in kinds:
            options.append(st.floats(*(between or (0, 9))))
        else:
            raise AssertionError(f"{cls.key()}.{field.name}: {hints[field.name]} has no choices and no bounds")
        values[field.name] = draw(st.one_of(options))
    try:
        return cls(**values)
    except SettingError:  # of settings that do not go together
        reject()


@every_method
@given(data=st.data())
def test_text_parses_back(cls, data):
    option = Option((data.draw(settings_of(cls)), data.draw(settings_of(cls))))
    assert Option.parse(str(option), trained=True) == option
    assert Option.parse(f"{cls.key()} {str(option.steps[0]).partition(' ')[2]}", trained=True).steps == option.steps[:1]


@every_method
def test_settings_are_said_in_full(cls):
    for field in dataclasses.fields(cls):
        assert field.metadata.get("help"), field.name
        assert (
            get_type_hints(cls)[field.name] in (bool,)
            or any(field.metadata[fact] for fact in ("between", "choices"))
            or field.metadata["metavar"] == "PATTERN"  # of names
            or (field.name in ("pattern", "blocks") and get_type_hints(cls)[field.name] is not int)  # texts of a grammar of their own
        ), f"{field.name} has neither bounds nor choices"
    with pytest.raises(TypeError):
        cls(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().anything = 1
    assert hash(cls()) == hash(cls()) and cls() == cls()


SECTIONS = ["*Shapes:*", "*Needs and cost:*", "*Reduces to:*", "*Raises:*", "Example:"]


@every_method
def test_the_docstring_has_the_sections_of_the_house(cls):
    text = inspect.getdoc(cls)
    lines = text.splitlines()
    assert lines[0].endswith(".") and lines[1] == "" and len(lines[0]) < 140
    flat = " ".join(text.split())
    places = [flat.find(section) for section in SECTIONS]
    assert -1 not in places and places == sorted(places), dict(zip(SECTIONS, places))
    assert "TODO" not in text and not re.search(r"\barXiv\b|https?:", text)  # the source is data


@every_method
def test_examples_run(cls):
    module = importlib.import_module(cls.__module__)
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


@every_method
def test_facts_are_of_the_closed_set(cls):
    assert cls.needs <= set(Need) and cls.treats and isinstance(cls.known_gaps, dict)
    assert cls.data_free() == (not cls.needs)
    if cls.paper is not None:
        assert cls.paper.title and cls.paper.authors and 1980 < cls.paper.year < 2100
        assert re.fullmatch(r"\d{4}\.\d{4,5}|", cls.paper.arxiv)
