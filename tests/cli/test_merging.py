"""The command: what it says, and what it refuses."""

import json

from click.testing import CliRunner

from modicum.cli.main import main


def run(*words):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="modicum")
    return result.exit_code, result.stdout, result.stderr


def test_it_says_what_was_merged(tmp_path):
    words = ("merge", "demo", "demo", "--method", "average", "--samples", "2", "--tokens", "32", "--out", tmp_path / "out")
    code, said, _ = run(*words, "--quality")
    assert code == 0 and "1 model merged by average" in said and "weight 1: demo" in said and "perplexity" in said and "95 %" in said
    code, said, _ = run(*words, "--overwrite", "--no-verify", "--json")
    assert code == 0 and "verified" not in json.loads(said)
    assert run(*words)[0] == 2 and "exists already" in run(*words)[2]


def test_slips_are_told():
    for words, told in (
        (("--weights", "a,b"), "--weights: must be numbers by commas"),
        (("--method", "gptq"), "must name one method that merges"),
        (("--method", "tie"), "is not known. Did you mean ties?"),
        (("--weights", "1,2"), "must be one for each of 1 models"),
    ):
        code, _, said = run("merge", "demo", "demo", "--out", "x", *words)
        assert code == 2 and told in said
    code, _, said = run("fit", "demo", "--method", "ties")
    assert code == 2 and "Use modicum merge" in said
