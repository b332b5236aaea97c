"""The whole budget at once: allocators choose one option per site from a harm table.

An allocator is a function ``choose(table, limits, judge, *, seed, seconds) -> picks``, alone in a file of its name. ``limits`` maps resources
(``bytes``, ``values``, ``memory``, ``seconds``) to the most that may be spent. ``judge(picks, samples)`` returns the real KL per token of a
selection on validation sequences; those that work on the table alone ignore it, the others are marked ``judged``. ``seconds`` bounds the
time a search may take.
"""

import importlib
import pkgutil
from collections.abc import Callable

from modicum.allocate._family import JUDGED
from modicum.core.plan import Picks

# Found by walking the folder: a new file is enough.
ALLOCATORS: dict[str, Callable[..., Picks]] = {
    info.name: getattr(importlib.import_module(f"{__name__}.{info.name}"), info.name)
    for info in pkgutil.iter_modules(__path__)
    if not info.name.startswith("_")
}

__all__ = ["ALLOCATORS", "JUDGED"]
