"""The command that makes a checkpoint of a file for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import click

from modicum.cli import early
from modicum.cli.generated import Command
from modicum.cli.options import OVERWRITE, SHOWN, flag, option, options, print_json
from modicum.core.errors import SettingError


@click.command("import", cls=Command)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@options(
    option("--out", type=click.Path(path_type=Path), metavar="DIR", required=True, group="files", help="Directory to write."),
    flag("--allow-quantized-source", "Take weights that are rounded already: what is made of them loses twice.", "files"),
    OVERWRITE,
)
@SHOWN
def import_file(file: Path, out: Path, allow_quantized_source: bool, overwrite: bool, quiet: bool, as_json: bool) -> None:
    """Make a checkpoint for Transformers of FILE, a model.gguf.

    Weights become the numbers they stand for, the tokenizer files of its own; then modicum fit DIR works on it as on any other. What was rounded
    says so in the receipts of all that is made of it.
    """
    if not file.is_file():
        raise SettingError(f"{file}: must be a GGUF file, is none. Check the path.")
    early.check_work(out, overwrite)
    from modicum.export.gguf.importing import import_gguf

    made = import_gguf(file, out, allow_quantized_source=allow_quantized_source, overwrite=overwrite)
    if as_json:
        print_json({"out": str(made.out), "source": str(made.source), "types": list(made.types), "parameters": made.parameters})
    else:
        click.echo(f"{made.out}: {made.parameters:,} parameters, which {made.source} holds as {', '.join(made.types)}.")
