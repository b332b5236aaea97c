"""Run the tests that judge loaders under several versions of what loads, and print one table.

python scripts/matrix.py                          # every environment, each in a folder of its own below .venv-matrix
python scripts/matrix.py --only newest torch-2.14 # these
python scripts/matrix.py --torch-index URL        # torch from another index, such as one of CPU builds

Versions given as X.Y stand for their last patch. An environment whose Python is not found, or whose torch would bring CUDA packages from the index
at hand, is skipped, with the reason in its row. Exits with 1 where a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-matrix"
# What judges a loader of somebody else's, our own reader beside it, and every architecture's forward, whose arguments change their names.
TESTS = [
    f"tests/export/test_{name}.py" for name in ("transformers", "loads", "schemes", "activations", "packed", "vllm", "opening", "uniform")
] + ["tests/contract/test_vllm_fusion.py", "tests/fit/test_uniform.py", "tests/sweep/test_engine.py"]  # fmt: skip
BESIDE = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100")
# Names that failed and are told in the table.
_TOLD = 3


@dataclass(frozen=True)
class Environment:
    """Versions of what loads; what is not said is the newest that pip takes."""

    name: str
    python: str = "3.11"
    torch: str = "2.13"
    transformers: str = ""
    compressed: str = ""

    @property
    def folder(self) -> Path:
        """Where it is installed."""
        return FOLDER / self.name

    def packages(self) -> list[str]:
        """What pip is asked for beside torch."""
        exactly = lambda package, version: f"{package}=={version}.*" if version else package
        return [exactly("transformers", self.transformers), exactly("compressed-tensors", self.compressed), *BESIDE]


ENVIRONMENTS = (
    Environment("newest"),
    Environment("transformers-5.18", transformers="5.18"),
    Environment("transformers-5.20", transformers="5.20"),
    Environment("compressed-tensors-0.17", compressed="0.17"),
    Environment("vllm-0.33", transformers="5.20", compressed="0.17"),  # the two that it asks for
    Environment("torch-2.12", torch="2.12"),
    Environment("torch-2.14", torch="2.14"),
    Environment("python-3.12", python="3.12"),
    Environment("python-3.13", python="3.13"),
)


@dataclass
class Row:
    """What came of an environment."""

    name: str
    versions: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    why: str = ""

    def cells(self) -> list[str]:
        """The row of the table."""
        counts = ["–"] * 3 if not self.versions else [str(self.passed), str(self.failed), str(self.skipped)]
        return [self.name, self.versions or "–", *counts, self.why]


class SkippedError(Exception):
    """An environment that cannot be had here, and why."""


def interpreter(version: str) -> str:
    """An interpreter of this version: on the PATH, or one of pyenv's."""
    found = [shutil.which(f"python{version}"), *sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))]
    for path in filter(None, found):
        if subprocess.run([path, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:  # a shim may stand for nothing
            return path
    raise SkippedError(f"no Python {version} here")


def run(*words: str | Path) -> str:
    """What a command prints. Raises ``SkippedError`` where it fails."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise SkippedError(next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no word")[:160])
    return done.stdout


def install(each: Environment, index: list[str]) -> str:
    """The environment's interpreter, with all in its place. Raises ``SkippedError``."""
    python = each.folder / "bin" / "python"
    asked = json.dumps([each.python, each.torch, each.packages(), index])
    stamp = each.folder / ".asked"
    if stamp.is_file() and stamp.read_text() == asked:
        return str(python)
    base = interpreter(each.python)
    shutil.rmtree(each.folder, ignore_errors=True)
    run(base, "-m", "venv", each.folder)
    torch = f"torch=={each.torch}.*"
    report = json.loads(run(python, "-m", "pip", "install", "-q", "--dry-run", "--report", "-", *index, torch))
    brought = [one["metadata"]["name"] for one in report["install"] if one["metadata"]["name"].lower().startswith(("nvidia", "cuda"))]
    if brought:
        raise SkippedError(f"torch {each.torch} for Python {each.python} brings {len(brought)} CUDA packages from this index")
    run(python, "-m", "pip", "install", "-q", *index, torch)
    run(python, "-m", "pip", "install", "-q", *each.packages(), "-e", ROOT)
    stamp.write_text(asked)
    return str(python)


def versions(python: str) -> str:
    """What stands there in the end."""
    code = (
        "import platform; from importlib.metadata import version as v; print(f\"Python {platform.python_version()}, torch {v('torch')}, \""
        " f\"Transformers {v('transformers')}, compressed-tensors {v('compressed-tensors')}\")"
    )
    return run(python, "-c", code).strip()


def judged(each: Environment, index: list[str]) -> Row:
    """Install an environment and run the tests there."""
    row = Row(each.name)
    try:
        python = install(each, index)
        row.versions = versions(python)
    except SkippedError as error:
        row.why = str(error)
        return row
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        there = [path for path in TESTS if (ROOT / path).is_file()]
        words = [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={report}", *there]
        done = subprocess.run(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        (each.folder / "log.txt").write_text(done.stdout + done.stderr)
        if not report.is_file():
            row.failed, row.why = 1, f"pytest did not start: {(done.stderr or done.stdout).strip()[-160:]}"
            return row
        counted(row, ElementTree.parse(report).getroot())
    return row


def counted(row: Row, report: ElementTree.Element) -> None:
    """Fill a row from what pytest reports."""
    failed, reasons = [], Counter[str]()
    for case in report.iter("testcase"):
        if (skipped := case.find("skipped")) is not None:
            reasons[skipped.get("message", "")[:80]] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failed.append(case.get("name", ""))
        else:
            row.passed += 1
    row.failed, row.skipped = len(failed), reasons.total()
    more = f" and {len(failed) - _TOLD} more" if len(failed) > _TOLD else ""
    told = [", ".join(failed[:_TOLD]) + more] if failed else []
    row.why = "; ".join([*told, *(f"{count} skipped: {reason}" for reason, count in reasons.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[each.name for each in ENVIRONMENTS], metavar="NAME")
    parser.add_argument("--torch-index", metavar="URL")
    asked = parser.parse_args()
    index = ["--index-url", asked.torch_index] if asked.torch_index else []
    rows = []
    for each in (one for one in ENVIRONMENTS if asked.only is None or one.name in asked.only):
        print(f"{each.name} ...", file=sys.stderr, flush=True)
        rows.append(judged(each, index))
    head = ["environment", "versions", "passed", "failed", "skipped", "why"]
    for cells in (head, ["---"] * len(head), *(row.cells() for row in rows)):
        print(f"| {' | '.join(cells)} |")
    absent = sum(not row.versions for row in rows)
    print(f"\n{len(rows) - absent} of {len(rows)} environments ran, {absent} skipped.")
    sys.exit(any(row.failed for row in rows))


if __name__ == "__main__":
    main()
