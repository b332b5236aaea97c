"""``modicum heal``: one sentence of what came of it, and slips told in words."""

from click.testing import CliRunner

from modicum.cli.healing import told
from modicum.cli.main import main

ACCOUNT = {"trained": 1234, "losses": [0.2, 0.1], "seconds": 3.2, "taken": True,
           "test": {"before": 0.2, "after": 0.1, "change": -0.1, "interval": [-0.12, -0.08], "sequences": 8}}  # fmt: skip


def test_what_came_of_it_is_one_sentence():
    said = told(ACCOUNT)
    assert (
        said
        == "1,234 trained numbers in 2 updates and 3 s; lost 0.2 before and 0.1 after on 8 held-out sequences (-0.1, 95 % -0.12 to -0.08)."
    )
    assert told(ACCOUNT | {"taken": False}).startswith("as it was; 1,234 trained numbers")


def test_slips_are_told_before_anything_is_opened(tmp_path):
    for words, said in ((["--method", "nrms"], "is not known"), (["--steps", "0"], "steps"), ([], "no such directory")):
        result = CliRunner().invoke(main, ["heal", str(tmp_path / "none"), "--out", str(tmp_path / "x"), *words])
        assert result.exit_code == 2 and said in result.stderr, result.stderr
