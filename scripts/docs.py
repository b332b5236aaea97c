"""Write what the documentation takes from the code, ``docs/reference.md`` and ``docs/methods.md``, and from kept results, ``docs/architectures.md``.

python scripts/docs.py                  # write them
python scripts/docs.py --check          # exit 1 where a committed copy is stale
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import modicum
from modicum.cli.codes import CODES
from modicum.cli.main import main as commands_of
from modicum.cli.show import facts
from modicum.core.method import FAMILIES, Method, registry
from modicum.core.recipe import Recipe, every
from modicum.core.settings import bounds as worded
from modicum.fit.request import Request

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTE_KEPT = "Written by `make docs` from `architectures.json`, which `scripts/architectures.py` makes; do not edit."
NOTE = "Written by `make docs` from the code; do not edit."


def reference() -> str:
    """Every public name, every setting of ``fit``, every method."""
    names = [name for name in modicum.__all__ if not name.startswith("_")]
    functions = [name for name in names if not isinstance(public(name), type)]
    errors = [name for name in names if name.endswith("Error")]
    classes = [name for name in names if name not in (*functions, *errors)]
    parts = [f"# Reference\n\n{NOTE} Every name below is imported from `modicum`; `modicum.__version__` is its version.\n"]
    parts += ["## Functions\n", *map(function, functions)]
    parts += ["## Settings of `fit`: `Request`\n", inspect.getdoc(Request) or "", "", settings(Request), ""]
    parts += ["## Command line\n", *command_line()]
    parts += ["## Classes\n", *map(klass, classes)]
    parts += ["## Errors\n", inspect.getdoc(sys.modules["modicum.core.errors"]) or "", "", table(("error", "when"), map(error, errors)), ""]
    parts += ["## Methods\n", "A method's name, with its settings, is an option: `gptq bits=3 group=64`; steps are joined by `|`.\n"]
    parts += [method(cls) for _, cls in sorted(registry().items())]
    parts += [
        "## Editors, forgetters and learners\n",
        "No steps of an option: `modicum edit`, `forget` and `learn` take one as their `--method`.\n",
    ]
    parts += [method(cls) for cls in every().values()]
    return "\n".join(parts).rstrip() + "\n"


# What no single help says.
FILES = """\
A command reads settings from a file with `--config FILE`, YAML or JSON, under the names of its long options (`text_column` or
`text-column`); values are spelt as on the command line, a list where that has commas or says an option again. What the command line says
counts more; a budget, a method or a plan given there takes the place of the file's. Paths are read from where the command runs.
`allow_pickle` and `trust_remote_code` are said on the command line alone. Beside every receipt and every measurement stands `run.yaml`,
with what was asked and no more: `modicum fit MODEL --config OUT/run.yaml --out OTHER` gives the same bytes, where nothing was left to the
clock (`--search-time 0`) and no plan is searched for. Data, plans and functions from Python are named in it (`given_in_python`) and must
be given again. From Python: `modicum.fit(config="run.yaml", out="other")`.
"""
RULES = """\
`--set 'PATTERN: what holds'`, or `set` in a file as a table of patterns, says what the layers that match may have, with the patterns of
`--keep`. What holds is settings (`bits=8 group=32`, `method=gptq`), which every option of the menu takes over there, those left out that
have none of that name; `keep`; or a whole option (`gptq bits=3 | eora rank=8`). Later rules count more, `--keep` most. A layer under a
rule is never cut, nor kept unless the rule says so. Layers that a runtime fuses must be meant together. What a target cannot hold is
refused before anything is measured.
"""


def command_line() -> list[str]:
    """Commands, exit codes, files of settings, and rules by layer."""
    commands = [(f"`modicum {name}`", (command.help or "").splitlines()[0]) for name, command in commands_of.commands.items()]
    codes = [(str(code), word, when) for code, word, when in CODES]
    return [
        table(("command", "what it does"), commands), "",
        "### Exit codes\n", "The same in every command.\n", table(("code", "in a word", "when"), codes), "",
        "### Settings in a file\n", FILES, "### Rules by layer\n", RULES,
    ]  # fmt: skip


def methods() -> str:
    """One row for each method."""
    names = ("key", "what it does", "needs", "data-free", "paper")
    found = [cls for _, cls in sorted(registry().items())]
    parts = [f"# Methods\n\n{NOTE} Settings are in the [reference](reference.md#methods) and under `modicum explain KEY`.\n"]
    for family in FAMILIES:
        rows = [row(cls) for cls in found if cls.family() == family]
        parts += [f"## {family}\n", table(names, rows), ""] if rows else []
    return "\n".join(parts).rstrip() + "\n"


def architectures() -> str:
    """What came of every architecture, from the kept results of ``scripts/architectures.py``."""
    kept = json.loads((DOCS / "architectures.json").read_text(encoding="utf-8"))
    said = ", ".join(f"{package} {version}" for package, version in kept["versions"].items())
    parts = [
        f"# Architectures\n\n{NOTE_KEPT} Versions: {said}.\n",
        "Each class is built tiny with random weights, saved, fitted with `nearest bits=8 group=32` and loaded again. *Right*: plain modules, the "
        "original and what was loaded, differ by what the receipt says, within 5 % or 1e-6, on the batches that it says it of; columns *receipt* "
        "and *outside* have both, in nats (KL) or as a relative squared error (RSE). *Bits*: of the files, per weight; tiny models are large in what "
        "stays dense. *Refused*: one sentence before anything is measured. *Not built*: Transformers does not build, run, or save and load it tiny "
        "from inputs found by trying. *Code*: the commit a row was made with; rows without one are older, their *outside* is of one batch that "
        "the run had not seen.\n",
    ]
    titles = {
        "transformers": "Causal language models, by plain `from_pretrained`",
        "modicum": "Other heads of Transformers, timm and diffusers, by `modicum.load`",
    }
    for target in (target for target in titles if target in kept):
        found = kept[target]
        counts = Counter(one["outcome"] for one in found.values())
        rows = [architecture(name, one) for name, one in found.items()]
        summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        parts += [
            f"## {titles[target]}\n\nOf {len(found)}{unswept(kept, target)}: {summary}.\n",
            table(("class", "outcome", "treated", "bits", "receipt", "outside", "what is left, or why", "code"), rows),
            "",
        ]
    return "\n".join(parts).rstrip() + "\n"


def unswept(kept: dict[str, Any], target: str) -> str:
    """Of how many classes those of a table are the ones swept so far."""
    listed = kept.get("listed", {}).get(target, 0)
    return f" swept so far, of {listed} that the sweep lists" if listed > len(kept[target]) else ""


def architecture(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """A class's row."""
    said = {key: str(found.get(key, "")) for key in ("outcome", "bits", "code", "receipt")}
    metric = {"": "", "relative squared error": " RSE"}.get(found.get("metric", ""), " KL")
    share, outside = f"{found['share']:.1%}" if "share" in found else "", str(found.get("outside", found.get("divergence", "")))
    receipt = f"{said['receipt']}{metric if said['receipt'] else ''}"
    return f"`{name}`", said["outcome"], share, said["bits"], receipt, outside, left_out(found), said["code"].partition(" ")[0]


def left_out(found: dict[str, Any]) -> str:
    """Reasons of what stays as it was with their share of it, the largest first; or why there is no result."""
    if "why" in found:
        return found["why"]
    whole = sum(found["left"].values()) or 1
    return ", ".join(
        f"{reason.removeprefix('target: ')} {size / whole:.0%}" for reason, size in found["left"].items() if size > whole / 100
    )


def row(cls: type[Method]) -> tuple[str, ...]:
    """A method's row of the table."""
    said = facts(cls)
    return f"`{said['key']}`", said["line"], ", ".join(said["needs"]), "yes" if cls.data_free() else "no", paper(cls)


def paper(cls: type[Method] | type[Recipe]) -> str:
    """A method's paper, linked where arXiv has it."""
    if cls.paper is None:
        return ""
    title = f"[{cls.paper.title}](https://arxiv.org/abs/{cls.paper.arxiv})" if cls.paper.arxiv else cls.paper.title
    return f"{title}, {cls.paper.year}"


def method(cls: type[Method] | type[Recipe]) -> str:
    """A method's section."""
    said = [f"Needs {', '.join(facts(cls)['needs']) or 'no data'}."] if issubclass(cls, Method) else []
    said += [f"Paper: {paper(cls)}."] if cls.paper else []
    said += [f"Known gap, {promise}: {reason}." for promise, reason in cls.known_gaps.items()]
    listed = f"{settings(cls)}\n" if dataclasses.fields(cls) else ""
    return f"### {cls.key()}\n\n{markdown(inspect.getdoc(cls) or '')}\n\n{' '.join(said)}\n\n{listed}"


def settings(cls: type) -> str:
    """Table of a dataclass's settings."""
    rows = [(f"`{f.name}`", f"`{f.type}`", f"`{f.default}`", bounds(f.metadata), f.metadata["help"])
            for f in dataclasses.fields(cls)]  # fmt: skip
    return table(("setting", "type", "default", "allowed", "what it is"), rows)


def bounds(metadata: Any) -> str:
    """Choices or closed bounds of a setting."""
    if metadata.get("choices"):
        return ", ".join(f"`{choice}`" for choice in metadata["choices"])
    return worded(metadata["between"]) if metadata.get("between") else ""


def public(name: str) -> Any:
    """A public name's value; the folder ``modicum.fit`` stands for its function."""
    value = getattr(modicum, name)
    return getattr(value, name) if inspect.ismodule(value) else value


def function(name: str) -> str:
    """A function's section."""
    return f"### {name}\n\n{signature(name, public(name))}\n\n{markdown(inspect.getdoc(public(name)) or '')}\n"


def klass(name: str) -> str:
    """A class's section: its own public methods and properties in a table."""
    cls = public(name)
    members = [(member, value) for member, value in vars(cls).items() if not member.startswith("_") and described(value)]
    rows = [(f"`{member}{call(value)}`", (described(value) or "").replace("\n", " ")) for member, value in members]
    listed = f"\n{table(('member', 'what it gives'), rows)}\n" if rows else ""
    return f"### {name}\n\n{signature(name, cls)}\n\n{markdown(inspect.getdoc(cls) or '')}\n{listed}"


def error(name: str) -> tuple[str, str]:
    """An error's row."""
    return f"`{name}`", inspect.getdoc(public(name)) or ""


def described(value: Any) -> str | None:
    """Docstring of a class's own member; plain attributes have none."""
    callable_or_property = inspect.isroutine(value) or isinstance(value, property) or hasattr(value, "attrname")
    return inspect.getdoc(value) if callable_or_property else None


def call(value: Any) -> str:
    """How a member is called, or nothing for a property."""
    inner = getattr(value, "__func__", value)
    if not inspect.isfunction(inner):
        return ""
    found = readable(inner)
    return str(found.replace(parameters=list(found.parameters.values())[not isinstance(value, staticmethod) :]))


def signature(name: str, value: Any) -> str:
    """A call's signature, one parameter a line where they are many."""
    found = readable(value)
    written = str(found)
    if len(name + written) > 100:
        inside = "".join(f"    {line},\n" for line in lines(found))
        written = f"(\n{inside}){str(found.replace(parameters=[])).removeprefix('()')}"
    return f"```python\n{name}{written}\n```"


class Shown(str):
    """A text that stands for a value in a signature, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def readable(value: Any) -> inspect.Signature:
    """A signature of the parameters a caller gives, with annotations as they were written."""
    found = inspect.signature(value)
    shown = lambda given: Shown(given) if isinstance(given, str) else given
    made = lambda default: Shown("...") if repr(default) == "<factory>" else default
    parameters = [
        parameter.replace(annotation=shown(parameter.annotation), default=made(parameter.default))
        for parameter in found.parameters.values()
        if not parameter.name.startswith("_")
    ]
    return found.replace(parameters=parameters, return_annotation=shown(found.return_annotation))


def lines(found: inspect.Signature) -> list[str]:
    """Parameters as they are written, with the star before those by keyword alone."""
    written, starred = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            written.append("*")
            starred = True
        starred |= parameter.kind is parameter.VAR_POSITIONAL
        written.append(str(parameter))
    return written


def markdown(doc: str) -> str:
    """A docstring as Markdown: examples fenced, sections of indented entries as lists."""
    doc = re.sub(r"^( *)((?:>>> .*\n?)(?:\1.+\n?)*)", lambda found: _fenced(found[1], found[2]), doc, flags=re.MULTILINE)
    doc = re.sub(r"^(Raises|Args|Returns):\n((?:    .*\n?)+)", lambda found: _listed(found[1], found[2]), doc, flags=re.MULTILINE)
    doc = re.sub(r"^Example:\n+", "*Example:*\n\n", doc, flags=re.MULTILINE)
    return re.sub(r"(?<!`)``(?!`)", "`", doc).strip()


def _fenced(indent: str, example: str) -> str:
    return "```python\n" + "".join(line.removeprefix(indent) for line in example.rstrip().splitlines(keepends=True)) + "\n```\n"


def _listed(title: str, entries: str) -> str:
    items = re.sub(r"^    (?! )", "- ", entries.rstrip(), flags=re.MULTILINE)
    return f"*{title}:*\n\n" + re.sub(r"\n +", " ", items) + "\n"


def table(names: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    names = list(names)
    body = [[cell.replace("|", "\\|").replace("<", "\\<").replace("``", "`") for cell in cells] for cells in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *body])


def main() -> int:
    """Write, or compare with ``--check``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where a committed copy is stale")
    checking = parser.parse_args().check
    pages = {DOCS / "reference.md": reference(), DOCS / "methods.md": methods(), DOCS / "architectures.md": architectures()}
    if not checking:
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if stale:
        print(f"docs: {' and '.join(stale)} must say what the code says, {'does' if len(stale) == 1 else 'do'} not. Run make docs.")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
