"""Finished steps on disk: a script that was stopped goes on where it was, and its result is the one it would have had."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS = HERE.parent / "out" / "evidence"


@dataclass
class Scenes:
    """Scenes that this process asked for, the seconds that each took whenever it was made, and those that went into them in this process."""

    used: dict[str, float] = field(default_factory=dict)
    making: float = 0.0


SCENES = Scenes()


@dataclass
class Kept:
    """Steps of one name, a file each, that today's code would do in the same way.

    A step is done again where a file has changed that was loaded when it had been done, whichever process did it. ``seconds`` of a processor are
    those of all steps asked for; those of the ``scenes`` that they used are apart, since others use them too.
    """

    folder: Path
    seconds: float = 0.0
    scenes: dict[str, float] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str) -> Kept:
        """The steps of a name."""
        folder = STEPS / name
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, code=code())

    def __call__(self, step: str, work: Callable[[], Any]) -> Any:
        """What a step found, as JSON has it; the work is done where no process has finished it."""
        file = self.folder / f"{hashlib.sha256(step.encode()).hexdigest()[:16]}.json"
        known = self._known(file)
        if known is None:
            start = time.process_time() - SCENES.making
            found = work()
            seconds = time.process_time() - SCENES.making - start
            known = {"step": step, "seconds": seconds, "scenes": SCENES.used, "found": found, "code": self._loaded()}
            begun = file.with_suffix(f".{os.getpid()}")
            begun.write_text(json.dumps(known), encoding="utf-8")
            begun.replace(file)
            known = json.loads(file.read_text(encoding="utf-8"))
        self.seconds += known["seconds"]
        self.scenes |= known["scenes"]
        return known["found"]

    def _known(self, file: Path) -> dict[str, Any] | None:
        if not file.exists():
            return None
        known = json.loads(file.read_text(encoding="utf-8"))
        changed = [path for path, digest in known["code"].items() if self.code.get(path) != digest]
        if changed:
            print(f"{self.folder.name}: {known['step']} is done again, since {changed[0]} is another", file=sys.stderr)
            return None
        return known

    def _loaded(self) -> dict[str, str]:
        """Hashes of the project's files that this process has loaded."""
        files = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())}
        return {path: digest for path, digest in self.code.items() if str(HERE.parent / path) in files}


def code() -> dict[str, str]:
    """Hashes of the files that a script may load, by path."""
    files = [path for folder in ("src", "evidence", "scripts") for path in (HERE.parent / folder).rglob("*.py")]
    return {path.relative_to(HERE.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files}
