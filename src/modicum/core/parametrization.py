"""The second kind of method: a weight made of fewer trained numbers, as a frozen value of pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from modicum.core.method import Trainable
from modicum.core.unit import Stats, Unit

if TYPE_CHECKING:
    import torch

    from modicum.forms import Base, Form


# Kinds that one option for all means; the rest is asked for by name.
_ORDINARY = {"linear", "conv1d", "convolution", "transposed convolution", "expert", "recurrent", "packed"}


@dataclass(frozen=True)
class Step:
    """Where training stands: ``number`` of ``total`` updates done. Schedules are told in shares, so that they fit any length."""

    number: int = 0
    total: int = 1

    @property
    def share(self) -> float:
        """Share of the updates that are done, from 0 to 1."""
        return min(1.0, self.number / max(1, self.total))


@dataclass(frozen=True)
class State:
    """What a parametrization keeps of one unit: tensors that are ``trained``, ``frozen`` ones, and what several units have in ``common``.

    Nothing in it is changed in place but by the optimizer, which writes into ``trained``. ``base`` is the leaf that stands for the weight beneath,
    and ``stored`` the form whose own numbers are trained, where they are.
    """

    trained: Mapping[str, torch.Tensor]
    frozen: Mapping[str, torch.Tensor] = field(default_factory=dict)
    common: State | None = None
    base: Base | None = None
    stored: Form | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        for place in (self.trained, self.frozen):
            if name in place:
                return place[name]
        if self.common is None:
            raise KeyError(name)
        return self.common[name]

    def having(self, trained: Mapping[str, torch.Tensor] | None = None, frozen: Mapping[str, torch.Tensor] | None = None) -> State:
        """The same with other tensors in the place of those of the same name."""
        return replace(self, trained={**self.trained, **(trained or {})}, frozen={**self.frozen, **(frozen or {})})


@dataclass(frozen=True)
class Start:
    """What a parametrization begins from on one unit.

    ``shape`` (rows, columns) of its matrix; ``weight`` in float32, None where training starts from nothing; ``stats`` of its inputs where
    somebody measured them; ``chance`` depends on the seed and the unit's name alone, and so does ``seed`` for what is drawn again by a reader.
    ``sides`` are those of the stored weight where it has more than two, such as a convolution's outputs, inputs, height and width; the first are
    the matrix's rows. ``gradient`` (rows, columns) is that of the loss in the weight where somebody took it, and ``stored`` what the unit is kept
    as already, where it is compressed.
    """

    unit: str
    shape: tuple[int, int]
    weight: torch.Tensor | None
    chance: torch.Generator
    seed: int
    stats: Stats | None = None
    common: State | None = None
    base: Base | None = None
    sides: tuple[int, ...] = ()
    stored: Form | None = None
    gradient: torch.Tensor | None = None


@dataclass(frozen=True)
class Revision:
    """What ``revise`` gives: states by unit, and which entries of the optimizer's moments live on.

    ``kept[unit][name]`` (entries,) int64 says for every entry of the new tensor, flattened, the entry of the old one whose moments it takes, -1 for
    none; a tensor that is not named keeps all of its own.
    """

    states: Mapping[str, State]
    kept: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Parametrization(Trainable):
    """Makes the weight of a unit from a state: most functions have a default, and all are pure.

    A file writes ``begin``, ``weight`` and ``form``, and of the rest what differs. Matrices are (rows, columns) = outputs × inputs in
    float32; the engine rounds once to the dtype that is stored. As a step of an option it stands last and is trained after assembly.

    Law: ``weight(base, state, end)`` is ``form(state).on(base)`` after that one rounding, where ``end`` is the last step.
    """

    # Whether the weight is the base changed, so that its form stands on a ``Base``; else it takes the weight's place.
    relative: ClassVar[bool] = True
    # Whether what ``begin`` gives is the base to the bit where it is relative; a reflection, say, never is.
    begins_at_base: ClassVar[bool] = True
    # Whether ``begin`` looks at the loss's gradient in the weight; where nobody took it, it begins otherwise.
    asks_gradient: ClassVar[bool] = False
    # Whether a model that is trained from the start begins with numbers that the method draws, not with those that the model was made with.
    draws: ClassVar[bool] = False
    # Whether whole rows go: of a last layer they would be answers, so one option for a model without blocks leaves that layer whole.
    cuts_rows: ClassVar[bool] = False

    def means(self, unit: Unit) -> bool:
        """Whether one option for a whole model trains this unit: weights of layers, and neither tables nor vectors, where a method does not say."""
        return unit.kind in _ORDINARY and unit.shape[0] > 1

    def common(self, shapes: Mapping[str, tuple[int, int]], chance: torch.Generator, seed: int) -> State | None:
        """Tensors that all units share, stored once; their names are of no unit's own.

        Those that are trained stand beside the forms of a delta, for a ``Shared`` leaf, under the method's text, a colon, a space, and their name.
        """
        return None

    def begin(self, start: Start) -> State:
        """State before the first step; where there is a weight, one that gives it back unless the method says otherwise."""
        raise NotImplementedError

    def weight(self, base: torch.Tensor | None, state: State, step: Step) -> torch.Tensor:
        """The definition: the weight (rows, columns), float32, differentiable in what is trained and in ``base``."""
        raise NotImplementedError

    @property
    def looks(self) -> int:
        """Passes over data before the first update, after each of which ``revise`` sees gradients; their steps are numbered up to 0."""
        return 0

    @property
    def treats_inputs(self) -> bool:
        """Whether ``inputs`` does anything under these settings: only layers that are called as linear ones can have it."""
        return type(self).inputs is not Parametrization.inputs

    def inputs(self, state: State, x: torch.Tensor, step: Step) -> torch.Tensor:
        """What happens to inputs (..., columns) before they are multiplied."""
        return x

    def form(self, state: State) -> Form:
        """What is stored, with exact bytes; it stands on ``state.base`` where the method is ``relative``."""
        raise NotImplementedError

    @property
    @override
    def closes(self) -> bool:
        """Whether it may stand last in an option of ``fit``: it says what is stored then."""
        return type(self).closed is not Parametrization.closed

    def closed(self, stored: Form, state: State) -> Form:
        """What is stored where it stands last in an option, on the form that the steps before it made, in that form's dtype."""
        raise NotImplementedError

    def product(self, base: Form | None, state: State, x: torch.Tensor, step: Step) -> torch.Tensor | None:
        """``x @ weight.T`` for x (..., columns) where it is cheaper than to make the weight; None where it is not."""
        return None

    def penalty(self, states: Mapping[str, State], step: Step) -> torch.Tensor | None:
        """What is added to the loss over all units of this method; None for nothing."""
        return None

    def watches(self, step: Step) -> bool:
        """Whether ``revise`` wants to see the gradients of whole weights after this step."""
        return False

    def revise(self, states: Mapping[str, State], gradients: Mapping[str, torch.Tensor], budget: int, step: Step) -> Revision | None:
        """All units at once after an update: supports chosen again, masks grown, ranks moved; None where nothing moves.

        ``gradients`` (rows, columns) of whole weights by unit on steps that it ``watches``, else empty; ``budget`` is how many trained numbers
        there may be over all units.
        """
        return None
