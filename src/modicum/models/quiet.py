"""Other libraries' bars and notices, kept from mixing with ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modicum.core.log import heard


@contextmanager
def hushed() -> Iterator[None]:
    """Keep other libraries quiet: what matters of what they say reaches the receipt, and downloads still show."""
    from tqdm import tqdm
    from transformers.utils import logging

    verbosity, bars, original = logging.get_verbosity(), logging.is_progress_bar_enabled(), tqdm.__init__

    def silent(self: tqdm, *arguments: Any, **settings: Any) -> None:
        # The plain bar is what quantization libraries draw, whatever is set; the hub's is a subclass.
        original(self, *arguments, **settings | ({"disable": True} if type(self) is tqdm else {}))

    if listened := heard():
        logging.disable_default_handler()  # who listens shows it
    else:
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original
        logging.set_verbosity(verbosity)
        if listened:
            logging.enable_default_handler()
        if bars:
            logging.enable_progress_bar()
