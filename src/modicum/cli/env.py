"""The command that tells what a report of a fault needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from modicum.cli.generated import Command
from modicum.cli.options import AS_JSON, print_json
from modicum.core.budget import readable


@click.command(cls=Command)
@AS_JSON
def env(as_json: bool) -> None:
    """Tell what a report of a fault needs: versions, system, processor, memory.

    No paths and no names of users or machines are told; read it before you pass it on all the same.
    """
    from modicum.cli.printing import print_rows
    from modicum.runtime.environment import environment

    found = environment()
    print_json(found) if as_json else print_rows(*_rows(found))


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    own, chip, memory = found["modicum"], found["processor"], found["memory"]
    yield "modicum", own["version"] + (f" at {own['commit']}" if own["commit"] else "")
    yield "python", found["python"]
    yield from ((name, version or "not installed") for name, version in found["packages"].items())
    for extra, packages in found["extras"].items():
        yield f"extra {extra}", ", ".join(f"{name} {version or 'not installed'}" for name, version in packages.items())
    yield "system", found["system"]
    yield "processor", f"{chip['name']} ({chip['machine']}), {chip['usable']} of {chip['cores']} cores may be used"
    yield "instructions", " ".join(chip["instructions"]) or "the system does not tell"
    limit = "none" if memory["group_limit"] is None else readable(memory["group_limit"])
    yield "memory", f"{readable(memory['total'])}, {readable(memory['free'])} free for a run; limit of the control group: {limit}"
    yield from _torch(found["torch"])
    yield from (("variable", f"{name}={value}" if value != "set" else f"{name} is set") for name, value in found["variables"].items())


def _torch(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "error" in found:
        yield "torch", found["error"]
        return
    onednn = "with" if found["onednn"] else "without"
    yield (
        "torch uses",
        f"{found['capability']}, {onednn} oneDNN, {found['threads']} threads ({found['interop_threads']} between operations)",
    )
    yield "accelerators", "; ".join(found["accelerators"]) or f"none (torch is built for {found['cuda'] or 'no'} CUDA)"
    for key, rate in found["rates"].items():
        yield "timed", f"{key}: {rate:.3g} billion operations a second"
