"""How many facts at once, at what price, and where it breaks: the curve over their number, by the default editor.

python -m bench.facts                 # a small decoder of the evidence, the demo, and the floor
python -m bench.facts decoder|demo|floor [COUNT...]

Facts are base classes of classes with invented names, of which the model knows none. Directions are those of the inputs' second moment at the
facts' places that hold nine tenths of its trace, the most of any layer that is written: a layer of n columns holds n independent keys at most.

The floor is of the demo: how many of the inputs that its layers see where facts' first tokens are asked for are independent, and what the least
change that gives each of them one unit of output costs ordinary text, in the norm of its inputs' second moment.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

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
ON_THE_DEMO, TEST = (25, 100, 200, 300, 500, 700), 24
HEAD = ("facts", "reached", "paraphrases", "perplexity of other text")


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


def curve(pupil: Taught, test: torch.Tensor, counts: Sequence[int]) -> Iterator[tuple[list, list]]:
    """Of each number of facts what it reached and cost, and the facts; the pupil is as it was afterwards."""
    for count in counts:
        facts = invented(count)
        pupil.changes = {}
        before = judged(pupil, facts, test)
        start = time.process_time()
        taught(pupil, facts, METHOD)
        seconds = time.process_time() - start
        told = summary(before, judged(pupil, facts, test))
        pupil.changes = {}
        share = lambda name, told=told: f"{told[name]['after']['share']:.1%}"
        yield [count, share("efficacy"), share("generalisation"), f"{told['perplexity']['change']:+.1%}", f"{seconds:.0f} s"], facts


def decoder(counts: Sequence[int] = COUNTS) -> None:
    """On the evidence's decoder."""
    from teaching import pupil as opened

    pupil, test = opened(0)
    names, rows = recipe("edit", METHOD).chosen(pupil), []
    for row, facts in curve(pupil, test, counts):
        with pupil.computing():
            rows.append([*row[:-1], directions(pupil, facts, names), row[-1]])
    columns = pupil.covariance(names[0]).shape[0]
    show(
        "Facts at once: a decoder of a million parameters, the default editor",
        (*HEAD, f"directions, of {columns}", "seconds of one processor"),
        rows,
        "Beyond the columns of a layer keys depend on each other, and ordinary text takes its share of them.",
    )


def demo(counts: Sequence[int] = ON_THE_DEMO) -> None:
    """On the demo."""
    from modicum.data.splits import from_text
    from modicum.edit.opening import taught as as_pupil
    from modicum.fit.working import working

    with working("demo", 256) as (source, module):
        parts = from_text(None, source.tokenizer, samples=64, tokens=256, seed=0, batch=8, test_samples=TEST)
        rows = lambda batches: torch.cat([each["input_ids"] for each in batches])
        pupil = as_pupil(module, source.tokenizer, rows(parts.calibration), name=source.hash())
        found = [row for row, _ in curve(pupil, rows(parts.test), counts)]
    show(
        "Facts at once on the demo: the default editor",
        (*HEAD, "seconds of one processor"),
        found,
        f"Drift is judged on {TEST} windows of 256 tokens. A layer that is written has 768 columns; how many keys of facts it tells apart "
        "stands in the table of the floor.",
    )


def main() -> None:
    """Teach, and tell."""
    asked = [word for word in sys.argv[1:] if not word.isdigit()] or list(WAYS)
    counts = [int(word) for word in sys.argv[1:] if word.isdigit()]
    for word in asked:
        WAYS[word](*([tuple(counts)] if counts else []))


WAYS = {"decoder": decoder, "demo": demo, "floor": floor}

if __name__ == "__main__":
    main()
