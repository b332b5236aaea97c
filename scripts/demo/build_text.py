"""Freeze the demo's texts: the Python standard library's sources and its help topics, split by module and section.

The training text goes to ``build/demo/train.txt``; calibration, validation and test texts go, compressed, into the package.
Whole top-level modules (``email``, ``tarfile``...) and whole help sections belong to one part each, chosen by a hash of the
name, so no part has seen a line of another's module.

    python scripts/demo/build_text.py
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import sys
import sysconfig
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "modicum" / "demo"
BUILD = ROOT / "build" / "demo"
SEPARATOR = "<|endoftext|>"
PARTS = ("calibration", "validation", "test")
# Tables of character codes and generated constants: megabytes of hexadecimal that teach nothing.
SKIPPED = ("encodings", "site-packages", "__pycache__", "lib-dynload", "pydoc_data", "idlelib/Icons")
# Names that share sources with a sibling would leak across parts: they are one module here.
ALIASES = {"_pydecimal": "decimal", "_pyio": "io", "_strptime": "datetime", "sre_compile": "re", "sre_parse": "re",
           "sre_constants": "re", "_collections_abc": "collections", "_weakrefset": "weakref", "macpath": "posixpath",
           "ntpath": "posixpath", "genericpath": "posixpath", "smtpd": "smtplib", "cgitb": "cgi", "_py_abc": "abc"}  # fmt: skip


def part_of(name: str) -> str:
    """``train`` or one of ``PARTS``, by a hash of a module's or section's name."""
    draw = int(hashlib.sha256(f"modicum-4:{name}".encode()).hexdigest()[:8], 16) % 100
    return "calibration" if draw < 9 else "validation" if draw < 17 else "test" if draw < 26 else "train"


def module_of(path: Path, library: Path) -> str:
    """Top-level module a file belongs to; a test file belongs to the module it tests."""
    parts = path.relative_to(library).with_suffix("").parts
    name = parts[0]
    if name == "test" and len(parts) > 1:
        name = parts[1].removeprefix("test_").split("_")[0] or parts[1]
    return ALIASES.get(name, name)


def documents() -> list[tuple[str, str]]:
    """(part, text) of every readable source file and help topic, in a fixed order."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library).as_posix()
        if any(relative.startswith(skip) or f"/{skip}/" in relative for skip in SKIPPED) or "_sysconfigdata" in relative:
            continue
        try:
            with tokenize.open(path) as source:
                text = source.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        part = part_of(module_of(path, library))
        is_test = relative.startswith("test/") or "/test" in relative
        if text.count("\\x") * 40 > len(text) or len(text) < 200 or (is_test and part != "train"):
            continue
        found.append((part, text))
    from pydoc_data import topics

    return found + [(part_of(f"topic:{name}"), topics.topics[name]) for name in sorted(topics.topics)]


def main() -> None:
    """Write the four texts and their hashes."""
    BUILD.mkdir(parents=True, exist_ok=True)
    PACKAGE.mkdir(parents=True, exist_ok=True)
    texts = {part: io.StringIO() for part in ("train", *PARTS)}
    for part, text in documents():
        texts[part].write(text.rstrip() + "\n" + SEPARATOR)
    record = {"python": sys.version.split()[0], "separator": SEPARATOR, "parts": {}}
    for part, buffer in texts.items():
        data = buffer.getvalue().encode()
        record["parts"][part] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if part == "train":
            (BUILD / "train.txt").write_bytes(data)
        else:
            (PACKAGE / f"{part}.txt.xz").write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    (PACKAGE / "texts.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
