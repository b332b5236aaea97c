"""The whole budget at once: allocators choose one option per site from a harm table.

An allocator is a function ``choose(table, budget, judge) -> picks``. ``judge(picks, samples)`` returns the real KL per token of a selection on
``samples`` validation sequences; those that work on the table alone ignore it.
"""

from modicum.allocate.integer_program import integer_program
from modicum.allocate.uniform import uniform

ALLOCATORS = {"integer_program": integer_program, "uniform": uniform}

__all__ = ["ALLOCATORS", "integer_program", "uniform"]
