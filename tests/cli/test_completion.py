"""Completion in a real shell, from the same options as the help."""

import os
import shutil
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from modicum.cli.main import main
from modicum.fit.request import ALLOCATORS
from modicum.measure.settings import HARMS, TARGETS

DRIVE = """
source <("$PROGRAM" completion bash)
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _modicum_completion modicum; echo "${COMPREPLY[@]}"; }
ask modicum fit --alloc
ask modicum fit demo --target ''
ask modicum comp
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash_completes_settings_choices_and_commands(tmp_path):
    program = tmp_path / "modicum"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m modicum "$@"\n')
    program.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PROGRAM": str(program)}
    done = subprocess.run(["bash", "--norc", "-c", DRIVE], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0 and not done.stderr, done.stderr
    names, targets, commands = (line.split() for line in done.stdout.splitlines())
    assert names == ["--allocator"] and targets == sorted(TARGETS, key=TARGETS.index) and commands == ["compare", "completion"]


def complete(*words):
    *before, last = words
    return [(item.value, item.type) for item in ShellComplete(main, {}, "modicum", "_MODICUM_COMPLETE").get_completions(before, last)]


def test_every_setting_with_choices_offers_them():
    assert [name for name, _ in complete("fit", "demo", "--allocator", "")] == list(ALLOCATORS)
    assert [name for name, _ in complete("measure", "demo", "--harm", "t")] == [name for name in HARMS if name.startswith("t")]
    for command in main.commands.values():
        offered = {name for name, _ in complete(command.name, "--")}
        wanted = {option.opts[-1] for option in command.params if isinstance(option, click.Option)}
        assert wanted <= offered | {"-v", "-h"}, command.name


def test_paths_are_completed_by_the_shell():
    assert complete("fit", "demo", "--data", "x") == [("x", "file")] and complete("fit", "--from", "") == [("", "dir")]
    assert complete("fit", "d") == [("demo", "plain"), ("d", "dir")]
    assert complete("explain", "gp") == [("gptq", "plain"), ("gptvq", "plain")]


@pytest.mark.parametrize("shell, said", [("bash", "complete -o nosort -F"), ("zsh", "#compdef modicum"), ("fish", "complete --no-files")])
def test_every_shell_has_a_script(shell, said):
    result = CliRunner().invoke(main, ["completion", shell], prog_name="modicum")
    assert result.exit_code == 0 and said in result.stdout and "_MODICUM_COMPLETE" in result.stdout
    assert CliRunner().invoke(main, ["completion", "dish"]).exit_code == 2
