"""What the README says is measured: each sentence there names tests, and those tests are there."""

import ast
import re
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def bullets():
    part = (HOME / "README.md").read_text(encoding="utf-8").split("## What is measured\n")[1].split("\nFigures, ")[0]
    return [" ".join(text.split()) for text in re.split(r"^- ", part, flags=re.MULTILINE)[1:]]


@pytest.mark.parametrize("text", bullets(), ids=lambda text: text[2:30])
def test_a_claim_names_tests_that_are_there(text):
    # Each sentence of a claim ends with its tests in brackets, but a bold one that only names what follows.
    sentences = [sentence for sentence in re.split(r"(?<=\.)\s+(?=[A-Z])", re.sub(r"^\*\*.*?\*\*,? ?", "", text)) if sentence]
    for sentence in sentences:
        found = NAMED.findall(sentence)
        assert found, f"names no test: {sentence}"
        for file, name in found:
            tree = ast.parse((HOME / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file} has no {name}"
