"""Scenes: what is trained once, in minutes, for all rows. One file each; it is made anew where the file that says how has changed.

``@scene()`` stands over a function that writes into an empty folder and returns figures that JSON can keep; ``@scene(other)`` where it
builds on another scene. Settings are keywords, and each has a folder of its own.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kept


@dataclass(frozen=True)
class Made:
    """A scene on disk, what its making told, and the seconds of a processor that it took, now or whenever it was."""

    folder: Path
    told: dict[str, Any]
    seconds: float


class Scene:
    """How a scene is made; called, it is made where no process has made it."""

    def __init__(self, make: Callable[..., dict[str, Any]], on: tuple[Scene, ...]):
        functools.update_wrapper(self, make)
        self.make, self.on, self.name = make, on, make.__name__

    @property
    def recipe(self) -> str:
        """Hash of the file that says how it is made, and of those that it builds on."""
        source = Path(inspect.getfile(self.make)).read_bytes()
        return hashlib.sha256(source + "".join(other.recipe for other in self.on).encode()).hexdigest()[:12]

    def __call__(self, **settings: Any) -> Made:
        """The scene of some settings."""
        said = "".join(f" {name}={settings[name]}" for name in sorted(settings))
        folder = kept.STEPS / "scenes" / f"{self.name}{said.replace(' ', '-')}-{self.recipe}"
        if not folder.exists():
            self._made(folder, settings)
        known = json.loads((folder / "made.json").read_text(encoding="utf-8"))
        kept.SCENES.used[self.name + said] = known["seconds"]
        return Made(folder, known["told"], known["seconds"])

    def _made(self, folder: Path, settings: dict[str, Any]) -> None:
        begun = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        start = time.process_time() - kept.SCENES.making
        told = self.make(begun, **settings)
        seconds = time.process_time() - kept.SCENES.making - start
        kept.SCENES.making += seconds
        (begun / "made.json").write_text(json.dumps({"seconds": seconds, "told": told}), encoding="utf-8")
        begun.rename(folder)


def scene(*on: Scene) -> Callable[[Callable[..., dict[str, Any]]], Scene]:
    """Make a scene of a function."""
    return lambda make: Scene(make, on)
