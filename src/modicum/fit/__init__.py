"""One run: what is asked for, the choice, the forms, the files, and the account of it.

``modicum.fit`` is this folder and the function: calling the module calls ``fit``.
"""

from modicum.core.verbs import as_verb
from modicum.fit.run import Result, fit

__all__ = ["Result", "fit"]

as_verb(__name__)
