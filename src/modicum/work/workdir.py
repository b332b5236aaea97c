"""The folder a run works in: locked, continued after an interruption, and moved into place in one step."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from modicum.core.errors import ModelError, SettingError
from modicum.core.files import read_json, write_json
from modicum.core.output import mark, require_apart, require_ours

# What is made in a folder, as its marker says.
RUN, MEASURING = "modicum-run", "modicum-measuring"


@dataclass
class WorkDir:
    """``out.partial`` until all is done, then ``out``; ``kind`` names what is made, so that nothing else is taken for it.

    ``inputs`` are read by the run: ``out`` is none of them, and neither above nor inside one.
    """

    out: Path
    kind: str
    overwrite: bool = False
    inputs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.out.name in ("", ".."):
            raise SettingError(f"--out {str(self.out)!r}: must name a folder that a run can make. Write its name, such as out/small.")
        self.partial = self.out.with_name(self.out.name + ".partial")

    def check(self) -> None:
        """Raise ``SettingError`` where ``out`` cannot be written."""
        try:
            self._check()
        except OSError as error:
            raise SettingError(f"{self.out}: must be writable, is not ({error.strerror or error}). Choose another --out.") from None

    def _check(self) -> None:
        require_apart(self.out, self.inputs, "--out")
        if os.path.lexists(self.out):
            if not self.overwrite:
                raise SettingError(f"{self.out}: exists already. Choose another --out, or pass --overwrite.")
            require_ours(self.out, "--out")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            Path(f"{self.partial}.lock").lstat()  # a name that is too long
        parent = next(parent for parent in self.out.absolute().parents if parent.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise SettingError(f"{self.out}: its folder must be writable, {parent} is not. Choose another --out.")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else writes here meanwhile; a lock that dies with its process."""
        lock = filelock.FileLock(str(self.partial) + ".lock")
        try:
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.partial.parent):  # what keeps the lock from being made is not always another run
                pass
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise SettingError(f"{self.out}: is being written by another run. Wait for it, or choose another --out.") from None
        except OSError as error:
            raise SettingError(f"{self.out}: must be writable, is not ({error.strerror or error}). Choose another --out.") from None
        try:
            yield
        except OSError as error:
            raise ModelError(
                f"{self.partial}: cannot be written ({error.strerror or error}). Free space or choose another --out."
            ) from None
        finally:
            # While it is held: a name that is removed later may be another run's by then.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()

    def begun(self, fingerprint: Callable[[], str]) -> Any:
        """What an interrupted run of the same request noted of how it computes; None where none is here."""
        known = _state(self.partial / "state.json") if self.partial.exists() else {}
        ours = known.get("format") == self.kind and known.get("fingerprint") == fingerprint()
        return known.get("compute") if ours else None

    def begin(self, fingerprint: str, compute: dict[str, str] | None = None) -> Path:
        """Continue an interrupted run of the same request, or start afresh; the folder to work in. ``compute`` is noted for those who go on."""
        state = self.partial / "state.json"
        if self.partial.exists():
            known = _state(state) or {"format": marker(self.partial)}
            if (self.partial / "replaced").exists() and not self.out.exists():
                (self.partial / "replaced").rename(self.out)
            # A run that died as it began has left its state half written, and nothing else.
            if known.get("format") != self.kind and any(path.name != "state.json.new" for path in self.partial.iterdir()):
                raise SettingError(f"{self.partial}: exists and is no interrupted run. Move it away, or choose another --out.")
            if known.get("fingerprint") != fingerprint:
                self._clear()
        self.partial.mkdir(exist_ok=True)
        write_json(state, {"format": self.kind, "fingerprint": fingerprint} | ({"compute": compute} if compute else {}))
        return self.partial

    def forget_ranks(self, count: int) -> None:
        """Remove what ranks of an interrupted run left beside ``out`` whom a run of ``count`` does not have."""
        name = re.compile(re.escape(self.out.name) + r"\.rank-(\d+)\.partial")
        for path in self.partial.parent.iterdir():
            if (found := name.fullmatch(path.name)) and int(found[1]) >= count and _state(path / "state.json").get("format") == self.kind:
                WorkDir(path.with_suffix(""), self.kind).discard()

    def discard(self) -> None:
        """Clear away what was made, as far as it can be."""
        with contextlib.suppress(OSError):
            self._clear()

    def finish(self, final: Path) -> None:
        """Put ``final``, a folder inside the partial one, in the place of ``out``."""
        self.check()  # somebody else may have written it meanwhile
        mark(final)
        if os.path.lexists(self.out):
            shutil.rmtree(self.partial / "replaced", ignore_errors=True)
            self.out.rename(self.partial / "replaced")
        final.rename(self.out)
        self.discard()  # all is done, whether or not it can be cleared away

    def _clear(self) -> None:
        """Remove the partial folder so that, wherever this is interrupted, it is known as ours and never continued from."""
        state, stale = self.partial / "state.json", self.partial / "stale.json"
        if state.exists():
            state.replace(stale)
        for path in self.partial.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != stale:
                path.unlink()
        shutil.rmtree(self.partial)


def beside(out: Path, rank: int) -> Path:
    """Where a rank that does not write keeps what it must have to be continued."""
    return out.with_name(f"{out.name}.rank-{rank}") if rank else out


def read_from(*given: Any) -> tuple[Path, ...]:
    """Files and folders on this machine among what a caller gave: paths, and models opened from a folder."""
    named = [item if isinstance(item, str | Path) else getattr(item, "directory", None) for item in given]
    return tuple(path for path in (Path(item) for item in named if isinstance(item, str | Path) and item != "demo") if path.exists())


def temporary(prefix: str = "modicum-") -> Path:
    """A folder of the caller's own."""
    return Path(tempfile.mkdtemp(prefix=prefix))


def marker(partial: Path) -> str:
    """What the folder of a run says that it is: being made, or being cleared away; nothing where it is no run's."""
    found = (_state(partial / name).get("format") for name in ("state.json", "stale.json"))
    return next((name for name in found if isinstance(name, str)), "")


def _state(path: Path) -> dict[str, Any]:
    """What an interrupted run wrote of itself; empty where nothing, or something foreign, stands there."""
    try:
        found = read_json(path)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
