"""What the package tells while it works, through Python's ``logging`` under the name ``modicum``; who listens decides what is shown."""

from __future__ import annotations

import logging

LOG = logging.getLogger("modicum")
LOG.addHandler(logging.NullHandler())  # what nobody listens to is not printed by itself
# Others whose warnings are worth reading beside ours.
BESIDE = ("py.warnings", "transformers")


def heard() -> bool:
    """Whether somebody listens to warnings of other libraries."""
    return any(handler.get_name() == LOG.name for handler in logging.getLogger(BESIDE[-1]).handlers)
