"""The parameters of neural networks: as few as the job needs.

Bring a model and a budget; get the best model that fits, in a format that runtimes load, with a receipt that proves it.

    >>> import modicum
    >>> result = modicum.fit("demo", "4bpw", out="out/demo")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from modicum.registration import register_when_imported

# Read once, when torch is loaded; what the caller has set stands. Threads that wait for each other spin for a fraction of a millisecond, then
# sleep: spinning on is many times slower beside other work on the machine, sleeping at once as much slower between small operations. Large
# tensors lie in large pages: a tenth of the page faults.
if "torch" not in sys.modules:
    if os.environ.keys().isdisjoint({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "5000"}
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

register_when_imported()

__version__ = "0.1.0"

_HOMES = {
    "fit": "modicum.fit", "Result": "modicum.fit", "measure": "modicum.measure", "Measured": "modicum.measure",
    "load": "modicum.export", "evaluate": "modicum.receipt", "frontier": "modicum.receipt", "report": "modicum.receipt",
    "find": "modicum.core.method", "register": "modicum.core.method", "open_model": "modicum.models.open", "trim": "modicum.vocabulary",
    "adapt": "modicum.adapt", "merge": "modicum.merge", "changed": "modicum.train.changed", "train": "modicum.train",
    "trained": "modicum.train.trained", "Delta": "modicum.delta.delta",
    "densify": "modicum.fit.dense", "heal": "modicum.fit.finished", "push": "modicum.fit.push",
    "edit": "modicum.edit", "forget": "modicum.forget", "learn": "modicum.learn",
    "Budget": "modicum.core.budget", "Plan": "modicum.core.plan", "Option": "modicum.core.option",
    "ModicumError": "modicum.core.errors", "SettingError": "modicum.core.errors",
    "ModelError": "modicum.core.errors", "DataError": "modicum.core.errors", "BudgetError": "modicum.core.errors",
}  # fmt: skip

__all__ = [
    "Budget",
    "BudgetError",
    "DataError",
    "Delta",
    "Measured",
    "ModelError",
    "ModicumError",
    "Option",
    "Plan",
    "Result",
    "SettingError",
    "__version__",
    "adapt",
    "changed",
    "densify",
    "edit",
    "evaluate",
    "find",
    "fit",
    "forget",
    "frontier",
    "heal",
    "learn",
    "load",
    "measure",
    "merge",
    "open_model",
    "push",
    "register",
    "report",
    "train",
    "trained",
    "trim",
]

if TYPE_CHECKING:
    from modicum.core.budget import Budget
    from modicum.core.errors import BudgetError, DataError, ModelError, ModicumError, SettingError
    from modicum.core.method import find, register
    from modicum.core.option import Option
    from modicum.core.plan import Plan
    from modicum.delta.delta import Delta
    from modicum.edit.editing import edit
    from modicum.export import load
    from modicum.fit import Result, fit
    from modicum.fit.dense import densify
    from modicum.fit.finished import heal
    from modicum.fit.push import push
    from modicum.forget.forgetting import forget
    from modicum.learn.learning import learn
    from modicum.measure import Measured, measure
    from modicum.merging.merge import merge
    from modicum.models.open import open_model
    from modicum.receipt.evaluate import evaluate
    from modicum.receipt.frontier import frontier
    from modicum.receipt.report import report
    from modicum.train.adapt import adapt
    from modicum.train.changed import changed
    from modicum.train.scratch import train
    from modicum.train.trained import trained
    from modicum.vocabulary import trim


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import modicum`` itself loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module 'modicum' has no attribute {name!r}")
    import sys

    home = importlib.import_module(_HOMES[name])
    value = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)  # a folder named by a verb can be called
    setattr(sys.modules[__name__], name, value)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
