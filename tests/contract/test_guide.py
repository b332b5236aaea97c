"""The guide: its commands are the ones there are, and no page is left out of the site."""

import re
import shlex
from pathlib import Path

import click
import pytest

from modicum.cli.main import main
from modicum.core.option import Option
from modicum.core.recipe import recipe
from modicum.core.rules import Rule

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted([DOCS / "index.md", *(DOCS / "guide").glob("*.md")])
LINES = [line for page in PAGES for line in re.findall(r"^(?:.* -m )?(modicum .*)$|`(modicum [^`]*)`", page.read_text(), re.M)]
COMMANDS = sorted({first or second for first, second in LINES if (first or second).split()[1] in main.commands})


def of(command):
    """A command's words by the option before each."""
    words, name = shlex.split(command, comments=True), ""
    for word in words[2:]:
        if word.startswith("-"):
            name = word
            yield name, ""
        elif name:
            yield name, word
            name = ""


def test_there_are_commands():
    assert len(COMMANDS) > 30 and {command.split()[1] for command in COMMANDS} > {"fit", "measure", "frontier", "trim", "export", "compare"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_one(command):
    known = {name for option in main.commands[command.split()[1]].params if isinstance(option, click.Option) for name in option.opts}
    for name, value in of(command):
        assert name in known, f"{command}: {name}"
        if name == "--method" and value and command.split()[1] in ("edit", "forget", "learn"):
            assert recipe(command.split()[1], value)
        elif name == "--method" and value not in ("", "auto"):
            assert Option.parse(value, trained=command.split()[1] in ("adapt", "train", "merge")).steps
        if name == "--set" and value:
            assert Rule.parse(value)


def test_every_page_is_in_the_site():
    listed = set(re.findall(r"^([a-z_/]+)$", (DOCS / "index.md").read_text(), re.M))
    there = {page.relative_to(DOCS).with_suffix("").as_posix() for page in [*DOCS.glob("*.md"), *(DOCS / "guide").glob("*.md")]}
    assert listed == there - {"index"}
