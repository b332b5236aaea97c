"""How many facts at once, at what price, and where it breaks: the curve over their number, on the evidence's small decoder, by the default editor.

python -m bench.facts [COUNT...]
python -m bench.facts floor

Facts are base classes of classes with invented names, of which the model knows none. Directions are those of the inputs' second moment at the
facts' places that hold nine tenths of its trace, the most of any layer that is written: a layer of n columns holds n independent keys at most.

The floor is of the demo: how many of the inputs that its layers see where facts' first tokens are asked for are independent, and what the least
change that gives each of them one unit of output costs ordinary text, in the norm of its inputs' second moment.
"""

from __future__ import annotations

import sys
import time

import torch

from bench.common import ROOT, show
from modicum.core.recipe import recipe
from modicum.edit.curvature import whitening
from modicum.edit.judged import judged, summary
from modicum.edit.rows import encoded
from modicum.edit.taught import Taught, answer_loss
from modicum.edit.teaching import taught
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


def floor(counts: tuple[int, ...] = (25, 50, 100, 200, 400, 600, 800, 1000)) -> None:
    """What any editor of one layer must pay for equalities at so many facts."""
    from modicum.data.splits import from_text
    from modicum.edit.opening import taught as as_pupil
    from modicum.fit.working import working

    with working("demo", 256) as (source, module):
        text = from_text(None, source.tokenizer, samples=64, tokens=256, seed=0, batch=8, test_samples=1).calibration
        pupil = as_pupil(module, source.tokenizer, torch.cat([each["input_ids"] for each in text]), name=source.hash())
        names = recipe("edit", METHOD).chosen(pupil)
        first = lambda rows: rows.answering & (rows.answering.cumsum(1) == 1)
        seen, _ = pupil.seen(encoded(pupil.tokenizer, invented(max(counts)), pupil.longest), names, first, answer_loss)
        white = {name: whitening(pupil.covariance(name), 1e-3) for name in names}
    rows = []
    for count in counts:
        grams = [(seen[name].keys[:count] @ white[name].T).double() for name in names]
        values = [torch.linalg.eigvalsh(each @ each.T) for each in grams]
        kept = [each[each > 1e-6 * each.max()] for each in values]
        cost = sum(float((1 / each).sum()) for each in kept) / len(names) / count
        rows.append([count, f"{min(map(len, kept))} to {max(map(len, kept))}", f"{cost:.3f}"])
    columns = pupil.covariance(names[0]).shape[0]
    show(
        "Floor of facts at once: keys of the demo's layers where a fact's first token is asked for",
        ("facts", f"independent keys, of {columns} columns", "least cost of a fact, for each of them one unit of output"),
        rows,
        f"The layers {', '.join(name.removesuffix('.weight') for name in names)}. Keys are independent above 1e-6 of the largest eigenvalue of their "
        "Gram matrix, whitened by the second moment of text with a thousandth of ridge. The cost is a square, in what text's outputs have; beyond "
        "the independent keys it is that of the nearest solution.",
    )


def main() -> None:
    """Teach, and tell."""
    floor()
    if "floor" in sys.argv[1:]:
        return
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
