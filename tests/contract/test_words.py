"""What errors say is written for whoever uses the package: no names that only its own code knows, no quotes cut inside a word, no endless lists."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import modicum
from modicum.core import errors
from modicum.core.errors import listed, quoted
from modicum.core.method import registry
from modicum.fit.request import Request

ROOT = Path(modicum.__file__).parent
KINDS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.ModicumError)} | {
    "RuinedError"
}
# Names of ours that users do know: what they import, what they write, and what they call their own classes by.
KNOWN = {*modicum.__all__, *Request.__dataclass_fields__, *(key.split("/")[1] for key in registry()), "Transformers", "random_checkpoint"}
KNOWN |= {path.stem for path in (ROOT / "allocate").glob("[!_]*.py")}


def trees():
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(ROOT.rglob("*.py"))]


@cache
def internal():
    """Names of our classes and functions that nobody would write in a sentence by chance: two capitals, or an underscore."""
    named = (ast.ClassDef, ast.FunctionDef)
    found = {node.name for _, tree in trees() for node in ast.walk(tree) if isinstance(node, named)}
    return {name for name in found if ("_" in name.strip("_") or re.search(r"[A-Z].*[a-z].*[A-Z]", name)) and name not in KNOWN}


def said(tree):
    """Every f-string or text that an error of ours is raised with, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
            yield from ((node.lineno, part) for argument in node.args for part in ast.walk(argument))


def words_of_ours(tree):
    texts = [(line, part.value) for line, part in said(tree) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return [(line, word) for line, text in texts for word in re.findall(r"[A-Za-z_]\w+", text) if word in internal()]


def cut_quotes(tree):
    """Values in f-strings whose text is cut to so many characters, wherever it ends."""
    formats = [node for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and node.format_spec is not None]
    told = lambda part: part.value if isinstance(part, ast.Constant) else "0"  # a number that is known when it runs
    specs = [(node.lineno, "".join(map(told, node.format_spec.values))) for node in formats]
    sliced = [
        (line, ast.unparse(part))
        for line, part in said(tree)
        if isinstance(part, ast.FormattedValue) and part.conversion == ord("r") and isinstance(part.value, ast.Subscript)
        and isinstance(part.value.slice, ast.Slice)
    ]  # fmt: skip
    return [(line, spec) for line, spec in specs if re.fullmatch(r"\.\d+s?", spec)] + sliced


def test_errors_speak_the_users_words():
    assert len(internal()) > 300, "otherwise this shows nothing"
    found = [f"{path.relative_to(ROOT)}:{line}: {word}" for path, tree in trees() for line, word in words_of_ours(tree)]
    assert not found, f"names that only our own code knows: {listed(found)}"


def test_quotes_are_not_cut_inside_a_word():
    found = [f"{path.relative_to(ROOT)}:{line}: {what}" for path, tree in trees() for line, what in cut_quotes(tree)]
    assert not found, f"quoted() ends between two words: {listed(found)}"


@pytest.mark.parametrize(
    ("code", "find"),
    [
        ("raise ModelError(f'{x}: a TensorWriter must be open.')", words_of_ours),
        ("raise DataError('data: read_documents cannot read it.')", words_of_ours),
        ("raise ModelError(f'{name!r:.80} is none.')", cut_quotes),
        ("raise DataError(f'{text[:40]!r} is none.')", cut_quotes),
    ],
)
def test_what_is_looked_for_is_found(code, find):
    assert find(ast.parse(code))


def test_quotes_end_between_words_and_lists_end():
    assert quoted("one two three", 9) == "one …"
    assert listed(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert listed(map(str, range(57))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 47 more"
