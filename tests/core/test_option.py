import pytest
import torch

from modicum.core import grammar
from modicum.core.errors import SettingError
from modicum.core.method import Change, Method, Need, Paper, find, register, registry
from modicum.core.option import Option
from modicum.core.unit import Site, Stats
from modicum.factor import Svd
from modicum.forms import Dense
from modicum.prune import Magnitude, Sparsegpt, Wanda
from modicum.quantize import Float8, Gptq, Half, Hqq
from modicum.repair import Eora


@pytest.mark.parametrize(
    "text, steps",
    [
        ("keep", ()),
        (" keep ", ()),
        ("int4", (Gptq(bits=4),)),
        ("int8 group=32 symmetric=true", (Gptq(bits=8, group=32, symmetric=True),)),
        ("fp8", (Float8(),)),
        ("fp16", (Half(),)),
        ("quantize/gptq bits=3", (Gptq(bits=3),)),
        ("gptq bits=3 group=64 | eora rank=8", (Gptq(bits=3, group=64), Eora(rank=8))),
        ("wanda pattern=2:4|eora", (Wanda(pattern="2:4"), Eora())),
        ("svd rank=none keep=0.25", (Svd(keep=0.25),)),
        ("sparsegpt keep='0.3'", (Sparsegpt(keep=0.3),)),
    ],
)
def test_text_becomes_steps(text, steps):
    option = Option.parse(text)
    assert option == Option(steps)
    assert Option.parse(str(option)) == option
    assert hash(option) == hash(Option(steps))


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "option '': holds an empty step. Write it as 'gptq bits=4 group=64 | eora rank=8'."),
        ("gptq | ", "option 'gptq | ': holds an empty step. Write it as 'gptq bits=4 group=64 | eora rank=8'."),
        ("gptq bits", "option 'gptq bits': settings are written name=value, got 'bits'."),
        ("gptq bit=3", "gptq: has no setting 'bit'. Did you mean bits?"),
        ("gptq bits=11", "gptq.bits: must lie between 2 and 8, got 11."),
        ("int16", "gptq.bits: must lie between 2 and 8, got 16."),
        ("fp8 bits=3", "float8: has no setting 'bits'. It has none."),
        ("wanda pattern=4:2", "prune/wanda.pattern: must be n:m with 0 < n <= m <= 64, got '4:2'."),
    ],
)
def test_text_that_cannot_be_read_is_told(text, said):
    with pytest.raises(SettingError) as error:
        Option.parse(text)
    assert str(error.value) == said


def test_an_open_quote_is_told():
    with pytest.raises(SettingError, match="cannot be read .*Write it as"):
        Option.parse("gptq bits='3")


@pytest.mark.parametrize("text", ["int4 bits=3", "gptq bits=3 bits=4"])
def test_a_setting_given_twice_is_refused(text):
    with pytest.raises(SettingError):
        Option.parse(text)


@pytest.mark.parametrize("name", ["gptk", "quantize/gptk", "quantise/gptq"])
def test_unknown_methods_offer_the_near_ones(name):
    with pytest.raises(SettingError, match=r"is not known\. Did you mean .*gptq"):
        Option.parse(name)


def test_methods_far_from_all_names_list_the_nearest_and_the_count():
    with pytest.raises(SettingError, match=r"'zzz': is not known\. The nearest of \d+: [\w, /]*ziplm, "):
        find("zzz")


def outside(base, **body):
    """A method as a script would write it."""
    return type("OddOnes", (base,), {"__module__": "a.script", **body})


@pytest.fixture
def known():
    """The registry, put back as it was afterwards."""
    before = dict(registry())
    yield registry()
    registry().clear()
    registry().update(before)


def test_a_registered_method_is_known_to_options(known):
    cls = outside(Magnitude)
    assert register(cls) is cls and register(cls) is cls
    assert cls.key() == "prune/odd_ones" and known["prune/odd_ones"] is cls
    assert Option.parse("odd_ones keep=0.3").steps == (cls(keep=0.3),)
    assert str(cls(keep=0.3)) == "odd_ones keep=0.3"


def test_a_name_of_two_families_must_be_told_apart(known):
    register(outside(Magnitude))
    register(outside(Gptq))
    with pytest.raises(SettingError, match="must name one method, is prune/odd_ones and quantize/odd_ones. Write the family too"):
        find("odd_ones")
    assert find("quantize/odd_ones").family() == "quantize"


def test_a_method_of_no_family_or_with_a_taken_name_is_refused(known):
    with pytest.raises(SettingError, match=r"OddOnes: must inherit from a class of a family \(quantize, prune"):
        register(outside(Method))
    register(outside(Magnitude))
    with pytest.raises(SettingError, match=r"prune/odd_ones: is taken by a\.script\.OddOnes"):
        register(type("OddOnes", (Magnitude,), {"__module__": "another.script"}))
    assert known["prune/odd_ones"].__module__ == "a.script"


def test_registry_names_methods_by_their_files():
    for key, cls in registry().items():
        assert cls.key() == key and cls.__module__ == f"modicum.{key.replace('/', '.')}" and cls.family() == key.split("/")[0]
    assert {"quantize/gptq", "quantize/nearest", "prune/wanda", "factor/svd", "repair/eora"} <= registry().keys()


def test_needs_are_those_of_all_steps():
    assert Option.parse("wanda | eora").needs == {Need.NORMS, Need.COVARIANCE}
    assert Option().needs == Option.parse("nearest").needs == frozenset()
    assert Option.parse("nearest").data_free and not Option.parse("nearest | eora").data_free


def test_stand_ins_without_data():
    assert Option.parse("gptq bits=3 symmetric=true").without_data() == Option((Hqq(bits=3, symmetric=True),))
    assert Option.parse("wanda keep=0.3").without_data() == Option((Magnitude(keep=0.3, per_row=True),))
    assert Option.parse("nearest bits=3 | eora rank=2").without_data() == Option.parse("nearest bits=3 | eora rank=2 whiten=false")
    assert Option().without_data() == Option()


def test_stand_ins_of_tables_where_gradients_are_taken():
    assert str(Option.parse("gptq bits=3 symmetric=true").looked_up()) == "gptq bits=3 symmetric=true moment=felt"
    for text in ("hqq bits=3", "gptq bits=3 moment=felt", "keep"):
        assert Option.parse(text).looked_up() == Option.parse(text)
    for text in ("watersic rate=2", "wanda keep=0.3", "nearest bits=3 | eora rank=2"):
        assert Option.parse(text).looked_up() == Option.parse(text).without_data()


def test_an_option_without_a_stand_in_has_none():
    class Hungry(Method):
        needs = frozenset({Need.INPUTS})

    assert Option((Magnitude(), Hungry())).without_data() is None


def test_each_step_sees_the_form_of_the_one_before(layer):
    thing = layer()

    class Note(Method):
        def apply(self, site, stats, current):
            (unit,) = site.units
            bias = {unit.module: torch.ones(1)}
            return Change({unit.name: Dense(current[unit.name].dense() + 1)}, bias, ("b",), frozenset({"c"}), ["said"])

    current = {thing.unit.name: Dense(thing.weight)}
    change = Option((Note(), Note())).apply(Site("s", "unit", (thing.unit,)), {thing.unit.name: Stats()}, current)
    torch.testing.assert_close(change.forms[thing.unit.name].dense(), thing.weight + 2)
    assert change.dropped == ("b", "b") and change.conflicts == {"c"} and change.events == ["said", "said"]
    assert torch.equal(current[thing.unit.name].dense(), thing.weight)


def test_a_paper_cites_itself():
    text = Paper("A Title", "2401.00001", 2024, "Doe, Jane").bibtex("prune/title")
    assert text.startswith("@misc{prune-title,\n  title = {A Title},\n  author = {Doe, Jane},\n  year = {2024},\n  eprint = {2401.00001},")
    assert "eprint" not in Paper("A Title", "", 2024).bibtex("x")


@pytest.mark.parametrize(
    ("text", "rounds"),
    [("watersic rate=2", True), ("coded rate=2", True), ("gptq bits=3", True), ("flap keep=0.5 | gptq bits=4", True), ("float8", False),
     ("sparsegpt keep=0.5", False), ("keep", False)],
)  # fmt: skip
def test_an_option_that_rounds_is_known_by_its_method_not_by_its_text(text, rounds):
    assert Option.parse(text).rounds is rounds


def test_what_is_trained_is_refused_where_nothing_trains():
    for read in (Option.parse, grammar.check):
        with pytest.raises(SettingError, match="lora: is trained, and nothing trains here"):
            read("lora rank=8 | nearest bits=4")
        read("nearest bits=4 | lora rank=8")  # it stands last, on what the step before it made
    closing = Option.parse("nearest bits=4 | lora rank=8").closing
    assert str(closing) == "lora rank=8" and Option.parse("nearest bits=4").closing is None
    with pytest.raises(SettingError, match="dora: must be what a file holds beside a compressed weight"):
        Option.parse("nearest bits=4 | dora rank=8")
    assert str(Option.parse("lora rank=8", trained=True)) == "lora rank=8"
