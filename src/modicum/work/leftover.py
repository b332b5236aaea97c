"""What runs that never finished have left below a folder, and how it is cleared away: nothing that another run uses, or that no run wrote."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from modicum.core.errors import SettingError
from modicum.core.files import read_json
from modicum.core.output import files_in, unlisted
from modicum.work.workdir import MEASURING, RUN, marker

_SUFFIX = ".partial"
# Who the folder of an interrupted run belongs to, by the format in its marker.
_KINDS = {RUN: "fit", MEASURING: "measure"}
_PROBES, _PROBE = "probes", "modicum-probe"
# What a run writes into its folder beside its marker, and into the folders in it. Results are known by the list of their files.
_TOP = ("state.json", "stale.json", "plan.json", "choice.json", "state.json.new", "choice.json.new", "activations-*")
_WORK = ("*.safetensors", "*.safetensors.partial", "*.json", "*.json.new", "activations-*")
_INSIDE = {"levels": _WORK, "assembly": _WORK, "plain": _WORK, "measure": _WORK, "workers-*": ("*.pt", "*.safetensors")}
_RESULTS = ("final", "replaced")


@dataclass(frozen=True)
class Leftover:
    """A folder that may go: whose it is (``kind``), its bytes, when something in it last changed, why it must stay (empty: it may go), and the
    former result that is in it, which goes back to where it was.
    """

    path: Path
    kind: str
    bytes: int
    changed: float
    stays: str
    former: Path | None = None

    @property
    def age(self) -> float:
        """Seconds since something in it changed."""
        return max(0.0, time.time() - self.changed)

    def remove(self) -> None:
        """Clear it away. Raises ``SettingError`` where it must stay, also if that came about only now."""
        if self.kind == _PROBE:
            _emptied(self.path, files_in(self.path))
            return
        with _lock(self.path) as free:
            now = _found(self.path, self.kind, not free)
            if now.stays:
                raise SettingError(f"{self.path}: is not removed: {now.stays}. Move away what is yours, or wait for the run.")
            if now.former is not None:
                (self.path / "replaced").rename(now.former)
            _forgotten(self.path)
            _emptied(self.path, files_in(self.path))
            with contextlib.suppress(OSError):
                Path(f"{self.path}.lock").unlink()


def leftovers(directory: Path) -> list[Leftover]:
    """Folders of interrupted runs, and kept answers of probes, below ``directory`` and in it."""
    return list(_below(directory))


def _below(directory: Path) -> Iterator[Leftover]:
    for folder, folders, _ in os.walk(directory):
        path = Path(folder)
        if kind := _kind(path):
            folders.clear()
            yield _found(path, kind, kind != _PROBE and not _is_free(path))
        folders.sort()


def _kind(path: Path) -> str:
    """Whose folder it is; nothing where it is no run's."""
    if path.name.endswith(_SUFFIX):
        return _KINDS.get(marker(path), "")
    return _PROBE if path.name == _PROBES and any(map(_is_probe, path.glob("*.json"))) else ""


def _found(path: Path, kind: str, held: bool) -> Leftover:
    files = files_in(path)
    told = [(file.lstat().st_size, file.lstat().st_mtime) for file in files if os.path.lexists(file)]
    out = path.with_name(path.name.removesuffix(_SUFFIX))
    former = out if (path / "replaced").is_dir() and not os.path.lexists(out) else None
    stays = (
        "a run is using it" if held else "" if not (foreign := _foreign(path, kind, files)) else f"it holds {foreign}, which no run wrote"
    )
    changed = max((when for _, when in told), default=path.stat().st_mtime)
    return Leftover(path, kind, sum(size for size, _ in told), changed, stays, former)


def _foreign(path: Path, kind: str, files: list[Path]) -> str:
    """The first file that no run wrote."""
    if kind == _PROBE:
        return next((str(file.relative_to(path)) for file in files if file.parent != path or not _is_probe(file)), "")
    strange = [file for file in files if not _known(file.relative_to(path), file.is_symlink())]
    strange += [path / name / each for name in _RESULTS if (path / name).is_dir() for each in unlisted(path / name, unfinished=True)]
    return str(min(strange).relative_to(path)) if strange else ""


def _known(inner: Path, link: bool) -> bool:
    """Whether a run writes such a file there; of results their own list says."""
    top, *rest = inner.parts
    if rest and top in _RESULTS:
        return True
    patterns = next((each for name, each in _INSIDE.items() if fnmatch.fnmatchcase(top, name)), ()) if rest else _TOP
    return not link and any(fnmatch.fnmatchcase(inner.name, pattern) for pattern in patterns)


def _is_probe(file: Path) -> bool:
    try:
        found = read_json(file)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("format") == _PROBE


def _is_free(path: Path) -> bool:
    """Whether no run holds the folder's lock; none is made to find out."""
    if not Path(f"{path}.lock").exists():
        return True
    with _lock(path) as free:
        return free


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold the lock of a run's folder, where it can be had."""
    lock = filelock.FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _forgotten(path: Path) -> None:
    """Let no run continue from what is being removed, wherever that is interrupted."""
    with contextlib.suppress(FileNotFoundError):
        (path / "state.json").replace(path / "stale.json")


def _emptied(path: Path, files: list[Path]) -> None:
    """Remove these files, the marker last, and folders that are then empty; what came meanwhile stays."""
    for file in sorted(files, key=lambda file: (file == path / "stale.json", file)):
        file.unlink(missing_ok=True)
    for folder, _, _ in os.walk(path, topdown=False):
        try:
            Path(folder).rmdir()
        except OSError as error:
            raise SettingError(f"{folder}: is not removed: {error.strerror}. Look into it.") from None
