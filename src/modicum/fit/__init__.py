"""The main job: open, measure, allocate, assemble, export, verify, and say what was done.

``modicum.fit`` is this folder and the function: calling the module calls ``fit``.
"""

import sys
from types import ModuleType
from typing import Any

from modicum.fit.measured import Measured, measure
from modicum.fit.run import Result, fit

__all__ = ["Measured", "Result", "fit", "measure"]


class _Callable(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Result:
        return fit(*args, **settings)


sys.modules[__name__].__class__ = _Callable
