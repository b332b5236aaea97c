"""What was learnt of masks: which tokens they cover, and what a reader must know where that is not all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from modicum.core.errors import listed
from modicum.sweep.cover import SIDES, Cover

_PLAINER = "A mask with an entry for each token says it."


@dataclass
class Learnt:
    """Masks by the names of tensors whose tokens they cover.

    ``ignored`` are masks that the model pays no heed; ``unclear`` those of which it could not be told which tokens they leave out; ``passed`` those
    whose padding some layers pass on to other tokens all the same, with the first tensor that feels it; ``loose`` tensors that feel padding and of
    whose tokens it could not be told which it is, by mask; ``read`` the readings taken of masks of pairs that have two, each with a tensor that it
    covers.
    """

    covers: dict[str, Cover] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)
    loose: dict[str, list[str]] = field(default_factory=dict)
    read: dict[str, dict[str, str]] = field(default_factory=dict)

    def events(self) -> list[str]:
        """What a reader must know of them."""
        found = [f"{name}: the model pays this mask no heed; what it marks counts like any other token." for name in self.ignored]
        found += [f"{name}: which tokens this mask leaves out could not be told; all count alike. {_PLAINER}" for name in self.unclear]
        found += [
            f"{mask}: not all layers obey this mask: what it marks as padding reaches other tokens before {name}. The tokens that it marks are left "
            "out of statistics and divergences all the same."
            for mask, name in self.passed.items()
        ]
        for mask, sides in self.read.items():
            taken = " and ".join(f"its {side} as padding of what goes into {name}" for side, name in sides.items())
            rest = "".join(f" What its {side} leave out counts. {_PLAINER}" for side in SIDES if side not in sides)
            found.append(f"{mask}: its rows and its columns leave out different tokens; read were {taken}.{rest}")
        return found + [
            f"{mask}: what is marked as padding is felt in {listed(names)}, of whose tokens it could not be told which are padding; all count."
            for mask, names in self.loose.items()
        ]
