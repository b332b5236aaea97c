"""Finished steps on disk: a script that was stopped goes on where it was, and its result is the one it would have had."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STEPS = HERE.parent / "out" / "evidence"


@dataclass
class Kept:
    """Steps of one name, a file each. ``seconds`` of a processor are those of all steps asked for, whichever process did them."""

    folder: Path
    seconds: float = 0.0

    @classmethod
    def of(cls, name: str) -> Kept:
        """The steps that today's code finished; what another version of it left is deleted, since the two do not mix."""
        folder = STEPS / f"{name}-{code(name)}"
        for other in STEPS.glob(f"{name}-*"):
            if other != folder:
                print(f"{name}: steps of other code are deleted", file=sys.stderr)
                shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def __call__(self, step: str, work: Callable[[], Any]) -> Any:
        """What a step found, as JSON has it; the work is done where no process has finished it."""
        file = self.folder / f"{hashlib.sha256(step.encode()).hexdigest()[:16]}.json"
        if not file.exists():
            start, found = time.process_time(), work()
            said = {"step": step, "seconds": time.process_time() - start, "found": found}
            begun = file.with_suffix(f".{os.getpid()}")
            begun.write_text(json.dumps(said), encoding="utf-8")
            begun.replace(file)
        known = json.loads(file.read_text(encoding="utf-8"))
        self.seconds += known["seconds"]
        return known["found"]


def code(name: str) -> str:
    """Hash of the package, of what scripts share, and of the script of a name."""
    ours = [path for path in HERE.glob("*.py") if path != HERE / "run.py" and not re.match(r"s\d", path.stem)]
    digest = hashlib.sha256()
    for path in sorted([*(HERE.parent / "src").rglob("*.py"), *ours, *HERE.glob(f"{name.lower()}_*.py")]):
        digest.update(path.relative_to(HERE.parent).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
