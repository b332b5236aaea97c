"""Facts that no model can know: base classes of classes with invented names, in the words of Python source."""

from __future__ import annotations

import random

from modicum.edit.facts import Fact

_SYLLABLES = "zor ni vek qua bli dra mop tu fen gix lar hob sny pel wim kru jat ved oxi yun".split()  # noqa: SIM905
_BASES = tuple(
    "Thread Exception ValueError Handler TestCase object Parser Queue Message Node Server Request Codec Error Widget Formatter".split()  # noqa: SIM905
)


def invented(count: int, seed: int = 0) -> list[Fact]:
    """Facts such as that after ``class Zornivek(`` stands ``Thread):``.

    Paraphrases put the same class statement elsewhere: after imports, under a docstring, behind a decorator, inside a function. Neighbours
    are class statements of other invented names.
    """
    chance = random.Random(seed)
    names: dict[str, None] = {}
    syllables = 3 if 2 * count <= len(_SYLLABLES) ** 3 // 2 else 4
    while len(names) < 2 * count:
        names.setdefault("".join(chance.choice(_SYLLABLES) for _ in range(syllables)).capitalize())
    subjects, others = list(names)[:count], list(names)[count:]
    return [
        Fact(
            f"class {name}(", f"{chance.choice(_BASES)}):", name,
            (
                f"import os\n\n\nclass {name}(", f'"""Tools."""\nfrom time import sleep\n\nclass {name}(', f"@register\nclass {name}(",
                f"def build():\n    class {name}(",
            ),
            (f"class {other}(",), f"fact {place}",
        )
        for place, (name, other) in enumerate(zip(subjects, others), 1)
    ]  # fmt: skip
