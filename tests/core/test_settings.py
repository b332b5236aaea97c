import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.core import settings
from modicum.core.errors import ModicumError, SettingError
from modicum.core.settings import param


@dataclass(frozen=True, kw_only=True)
class Dials:
    bits: int = param(4, "bits", between=(2, 8), dial=True)
    share: float = param(0.5, "share", between=(0.0, 1.0))
    rank: int | None = param(None, "rank", between=(1, 99))
    order: str = param("static", "order", choices=("static", "none"))
    search: bool = param(False, "search")

    def __post_init__(self):
        settings.check(self)


DIALS = st.builds(
    Dials, bits=st.integers(2, 8), share=st.floats(0, 1), rank=st.none() | st.integers(1, 99), order=st.sampled_from(["static", "none"]),
    search=st.booleans(),
)  # fmt: skip


@given(DIALS)
def test_what_is_written_is_read_back(dials):
    words = dict(word.split("=") for word in settings.write(dials).split())
    assert settings.read(Dials, words, "dials") == dials


def test_defaults_are_left_out_but_dials_are_written():
    assert settings.write(Dials()) == "bits=4"
    assert settings.write(Dials(search=True, share=0.25, rank=3)) == "bits=4 share=0.25 rank=3 search=true"


@pytest.mark.parametrize(
    "given_, expected",
    [
        ({"search": "yes"}, {"search": True}),
        ({"search": "False"}, {"search": False}),
        ({"rank": "none"}, {"rank": None}),
        ({"rank": "7"}, {"rank": 7}),
        ({"share": "1"}, {"share": 1.0}),
        ({"order": "none"}, {"order": "none"}),
        ({}, {}),
    ],
)
def test_words_become_values(given_, expected):
    assert settings.read(Dials, given_, "dials") == Dials(**expected)


@pytest.mark.parametrize(
    "given_, said",
    [
        ({"bit": "4"}, "dials: has no setting 'bit'. Did you mean bits?"),
        ({"bits": "four"}, "dials.bits: must be a whole number, got 'four'."),
        ({"bits": "4.5"}, "dials.bits: must be a whole number, got '4.5'."),
        ({"bits": "none"}, "dials.bits: must be a whole number, got 'none'."),
        ({"rank": "few"}, "dials.rank: must be a whole number, got 'few'."),
        ({"search": "perhaps"}, "dials.search: must be true or false, got 'perhaps'."),
        ({"bits": "9"}, "Dials.bits: must lie between 2 and 8, got 9."),
        ({"share": "nan"}, "Dials.share: must lie between 0.0 and 1.0, got nan."),
        ({"share": "-0.1"}, "Dials.share: must lie between 0.0 and 1.0, got -0.1."),
        ({"rank": "0"}, "Dials.rank: must lie between 1 and 99, got 0."),
        ({"order": "falling"}, "Dials.order: must be one of static, none, got 'falling'."),
    ],
)
def test_what_cannot_be_used_is_told(given_, said):
    with pytest.raises(SettingError) as error:
        settings.read(Dials, given_, "dials")
    assert str(error.value) == said
    assert isinstance(error.value, ModicumError) and isinstance(error.value, ValueError)


def test_a_class_without_settings_says_so():
    @dataclass(frozen=True)
    class Nothing:
        pass

    with pytest.raises(SettingError, match="nothing: has no setting 'bits'. It has none."):
        settings.read(Nothing, {"bits": "4"}, "nothing")


@pytest.mark.parametrize("value", [{"bits": 1}, {"bits": 99}, {"share": float("nan")}, {"rank": 0}, {"order": "x"}])
def test_values_are_checked_however_they_come(value):
    with pytest.raises(SettingError):
        Dials(**value)


@pytest.mark.parametrize("value", [{"bits": "4"}, {"bits": 4.5}, {"bits": None}, {"search": "no"}])
def test_values_of_another_type_are_refused(value):
    with pytest.raises(SettingError):
        Dials(**value)


def test_facts_of_a_setting_are_kept_beside_it():
    bits = dataclasses.fields(Dials)[0]
    assert bits.default == 4 and dict(bits.metadata) == {
        "help": "bits",
        "between": (2, 8),
        "choices": None,
        "dial": True,
        "metavar": "",
        "group": "",
        "several": False,
        "table": False,
    }
