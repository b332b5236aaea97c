"""What a run tells beside its progress: more lines on stderr, and a file of them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from modicum import __version__
from modicum.cli.progress import lasting
from modicum.core.errors import ModicumError, SettingError
from modicum.core.log import BESIDE, LOG


class _Shown(logging.StreamHandler):
    """Lines on stderr, whatever stands for it by then, each after the time since the run began."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record; tracebacks are printed by whoever ends the program."""
        self.stream = sys.stderr
        record = logging.makeLogRecord({**vars(record), "exc_info": None, "exc_text": None})
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return f"[{lasting(time.monotonic() - self._begun)}] {super().format(record)}"


@contextmanager
def told(*, verbose: bool, file: Path | None, words: Sequence[str]) -> Iterator[None]:
    """Show what the package and its libraries tell, and write it to a ``file``, while the command of these ``words`` runs.

    *Raises*: ``SettingError`` where the file cannot be written.
    """
    with ExitStack() as stack:
        handlers: list[logging.Handler] = [_Shown()] if verbose else []
        if file is not None:
            handlers.append(_opened(file))
        for handler in handlers:
            stack.enter_context(_listening(handler))
        LOG.info("modicum %s: %s", __version__, " ".join(words))
        try:
            yield
        except ModicumError as error:
            LOG.error("%s", error)
            raise
        except (click.exceptions.Exit, click.ClickException):
            raise
        except Exception as error:
            LOG.exception("ended by %s", type(error).__name__)
            raise
        except KeyboardInterrupt:
            LOG.error("interrupted")
            raise


def _opened(path: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise SettingError(f"{path}: must be writable, is not ({error.strerror or error}). Choose another --log-file.") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler


@contextmanager
def _listening(handler: logging.Handler) -> Iterator[None]:
    """Let a handler hear us, and warnings of others; then everything is as it was."""
    loggers, level = [LOG, *map(logging.getLogger, BESIDE)], LOG.level
    handler.set_name(LOG.name)
    for logger in loggers:
        logger.addHandler(handler)
    LOG.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeHandler(handler)
        LOG.setLevel(level)
        handler.close()
