import pytest

from modicum.core.errors import DataError
from modicum.core.sources import sources_of


def test_several_have_weights():
    assert sources_of("code/=3,letters.txt") == [("code/", 3.0), ("letters.txt", 1.0)] and sources_of("one.txt") == [("one.txt", 1.0)]


def test_a_name_with_commas_that_is_there_is_one_source(tmp_path):
    whole = tmp_path / "a,b=2.txt"
    whole.write_text("text")
    assert sources_of(whole) == [(str(whole), 1.0)]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a.txt=0,b.txt", "a positive number behind each =, 0 came"),
        ("a.txt=,b.txt", "a positive number behind each =, nothing came"),
        ("a.txt=inf,b.txt", "a positive number behind each =, inf came"),
        ("a.txt,,b.txt", "one name is empty"),
        ("a.txt,a.txt=2", "a.txt is named twice"),
    ],
)
def test_slips_are_told(path, said):
    with pytest.raises(DataError, match=said):
        sources_of(path)
