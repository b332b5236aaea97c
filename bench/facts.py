"""How many facts at once, at what price, and where it breaks: the curve over their number, on the evidence's small decoder, by the default editor.

python -m bench.facts [COUNT...]

Facts are base classes of classes with invented names, of which the model knows none. Directions are those of the inputs' second moment at the
facts' places that hold nine tenths of its trace, the most of any layer that is written: a layer of n columns holds n independent keys at most.
"""

from __future__ import annotations

import sys
import time

import torch

from bench.common import ROOT, show
from modicum.core.recipe import recipe
from modicum.edit.editing import taught
from modicum.edit.judged import judged, summary
from modicum.edit.rows import encoded
from modicum.edit.taught import Taught, answer_loss
from modicum.testing.facts import invented

sys.path.insert(0, str(ROOT / "evidence"))

COUNTS, METHOD = (25, 50, 100, 200, 400), "ultraedit"


def directions(pupil: Taught, facts: list, names: list[str]) -> int:
    """How many directions hold nine tenths of what the layers see at the facts' places."""
    seen, _ = pupil.seen(encoded(pupil.tokenizer, facts, pupil.longest), names, lambda rows: rows.answering | rows.ending, answer_loss)
    most = 0
    for each in seen.values():
        values = torch.linalg.svdvals(each.keys.double()).square()
        most = max(most, int((values.cumsum(0) < 0.9 * values.sum()).sum()) + 1)
    return most


def main() -> None:
    """Teach, and tell."""
    from teaching import pupil as opened

    pupil, test = opened(0)
    names, rows = recipe("edit", METHOD).chosen(pupil), []
    for count in [int(word) for word in sys.argv[1:] if word.isdigit()] or COUNTS:
        facts = invented(count)
        pupil.changes = {}
        before = judged(pupil, facts, test)
        start = time.process_time()
        taught(pupil, facts, METHOD)
        seconds = time.process_time() - start
        told = summary(before, judged(pupil, facts, test))
        pupil.changes = {}
        with pupil.computing():
            held = directions(pupil, facts, names)
        share = lambda name, told=told: f"{told[name]['after']['share']:.1%}"
        rows.append([count, share("efficacy"), share("generalisation"), f"{told['perplexity']['change']:+.1%}", held, f"{seconds:.0f} s"])
    columns = pupil.covariance(names[0]).shape[0]
    show(
        "Facts at once: a decoder of a million parameters, the default editor",
        ("facts", "reached", "paraphrases", "perplexity of other text", f"directions, of {columns}", "seconds of one processor"),
        rows,
        "Beyond the columns of a layer keys depend on each other, and ordinary text takes its share of them.",
    )


if __name__ == "__main__":
    main()
