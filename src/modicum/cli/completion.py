"""The command that prints what a shell needs to complete the others: made from the same options, so it knows every setting and its choices."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from modicum.cli.generated import Command

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what lets SHELL complete commands, settings and their choices.

    bash: source <(modicum completion bash). zsh: the same, after compinit. fish: modicum completion fish | source. Written into the shell's
    start-up file it is there for good.
    """
    root = click.get_current_context().find_root()
    name = root.info_name or "modicum"
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(root.command, {}, name, f"_{name.upper().replace('-', '_')}_COMPLETE").source())
