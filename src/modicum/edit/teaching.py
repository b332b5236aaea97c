"""Facts taught to an opened model, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

from modicum.core.progress import Quiet
from modicum.core.recipe import recipe
from modicum.edit.editor import Editor, Past, require_layers
from modicum.edit.facts import Fact
from modicum.edit.rows import encoded
from modicum.edit.taught import Taught

# Facts that are encoded at once to see whether all can be.
_CHECKED = 1000


def taught(pupil: Taught, facts: Sequence[Fact], method: str | Editor, *, batch: int = 0, progress: Quiet | None = None) -> Taught:
    """The model after it was taught the facts, ``batch`` at a time; the same object, whose ``changes`` are what it learnt.

    Raises what ``edit`` raises.
    """
    shown = progress or Quiet()
    asked: Editor = recipe("edit", method)
    require_layers(pupil)
    for start in range(0, len(facts), _CHECKED):  # refused before any work
        encoded(pupil.tokenizer, facts[start : start + _CHECKED], pupil.longest)
    size = batch or max(1, len(facts))
    past = Past()
    shown.start("editing", -(-len(facts) // size))
    with pupil.computing():
        for start in range(0, len(facts), size):
            some = sorted(facts[start : start + size], key=lambda fact: (fact.prompt, fact.target))
            past = asked.teach(pupil, some, past)
            shown.step()
    return pupil
