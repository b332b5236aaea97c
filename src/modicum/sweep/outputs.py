"""What a model's output is: which tensors of it are judged, along which axis classes lie, and which positions count. Decided here alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from modicum.core.errors import ModelError, SettingError, listed, near, quoted
from modicum.data.splits import Batch
from modicum.sweep.cover import Cover

CLASSES, INDEPENDENT, VALUES = "classes", "independent", "values"
_WORDS = {"none": VALUES, "values": VALUES, INDEPENDENT: INDEPENDENT}
# Names, in Transformers' conventions, of what models hand out beside their answer.
_INNER = re.compile(
    r"(^|_)(loss|losses|hidden_states?|attentions?|past_key_values|cache|cache_params|mems|router_logits|reference_points)$"
    r"|^(intermediate|init|enc|encoder|decoder|auxiliary|denoising|backbone|rnn)_"
)
_NESTED = re.compile(r"(^|_)outputs?$")
_HEADLESS = "last_hidden_state"


@dataclass(frozen=True)
class Part:
    """One tensor of an output. ``kind``: ``classes``, logits of which one is right, along ``axis``; ``independent``, logits of yes or no, the labels
    of one position along ``axis``; ``values``, anything else. ``cover`` is the mask that its tokens belong to.
    """

    path: tuple[Any, ...]
    kind: str
    axis: int = -1
    cover: Cover | None = None

    @property
    def name(self) -> str:
        """As people write it."""
        return ".".join(map(str, self.path)) or "output"

    def __str__(self) -> str:
        along = "the last axis" if self.axis == -1 else f"axis {self.axis}"
        return f"{self.name}: {self.kind}" + ("" if self.kind == VALUES else f" on {along}")

    def laid(self, value: torch.Tensor) -> torch.Tensor:
        """The tensor with its classes last."""
        value = torch.view_as_real(value) if value.is_complex() else value
        return value if self.axis == -1 or self.kind == VALUES else value.movedim(self.axis, -1)

    def real(self, batch: Batch | None, laid: torch.Tensor) -> torch.Tensor | None:
        """Which positions (all axes of a laid tensor but the last) are no padding; None where all count."""
        shape = laid.shape[:-1] if laid.ndim > 1 else laid.shape
        real = None if self.cover is None or batch is None else self.cover.real(batch, shape)
        return None if real is None else real.to(laid.device).expand(shape)


class Read(tuple):
    """Tensors of an output that was read already."""


@dataclass(frozen=True)
class Outputs:
    """The judged tensors of a model's outputs, the first of which is its main answer.

    ``parts`` are told once, from the original's output (`described`); until then each output is described as it comes. ``choose`` is the caller's
    own function from an output to one tensor or several.
    """

    parts: tuple[Part, ...] | None = None
    choose: Callable[[Any], Any] | None = None

    def of(self, output: Any) -> list[tuple[Part, torch.Tensor]]:
        """Every judged part of an output with its tensor, classes last. Raises ``ModelError`` where one is missing."""
        output = output if self.choose is None or isinstance(output, Read) else self.choose(output)
        parts = self.parts if self.parts is not None else _parts(output, None)
        return [(part, part.laid(value)) for part, value in zip(parts, _values(output, parts))]

    def keep(self, output: Any) -> Read:
        """What of an output is judged, to be given to ``of`` later in its place."""
        output = output if self.choose is None else self.choose(output)
        return Read(_values(output, self.parts if self.parts is not None else _parts(output, None)))

    def covered(self, covers: Mapping[str, Cover]) -> Outputs:
        """The same, with the masks of parts by their names."""
        return replace(self, parts=tuple(replace(part, cover=covers.get(part.name)) for part in self.parts or ()))


def _values(output: Any, parts: Sequence[Part]) -> list[torch.Tensor]:
    return list(output) if isinstance(output, Read) else [_follow(output, part.path) for part in parts]


def output_tensor(output: Any) -> tuple[torch.Tensor, bool]:
    """The tensor that stands for a model's output, and whether it holds logits. Raises ``ModelError`` where there is none."""
    part, value = Outputs().of(output)[0]
    return value, part.kind != VALUES


# What an output holds


def described(
    output: Any, config: Any = None, wanted: str | Callable[[Any], Any] | None = None, classes: str | None = None,
    maps: Sequence[torch.Tensor] = (),
) -> Outputs:  # fmt: skip
    """Tell what of ``output`` is judged, and how.

    Where ``wanted`` (names or places, separated by commas, the main one first; or a function) does not say, it is every float tensor with an axis
    that is no inner state, cache or loss. Tensors named as logits hold classes on the last axis, on the second of maps (batch, classes,
    height, width), and of what a convolution gave as it is (``maps``), unless the config says that they are numbers (regression) or independent
    labels; a single logit is a score, and logits of pairs are similarities. All else holds values. ``classes`` says it instead, for the first
    output or one after the other: an axis,
    ``independent``, or ``none``.

    Raises ``SettingError`` for what is not there, ``ModelError`` where there is nothing to judge.
    """
    choose = wanted if callable(wanted) else None
    output = output if choose is None else _chosen(choose, output)
    parts = _parts(output, config, maps) if choose is not None or wanted is None else _wanted(output, str(wanted), config, maps)
    return Outputs(_classified(output, parts, classes), choose)


def _chosen(choose: Callable[[Any], Any], output: Any) -> Any:
    """What a caller's function takes of an output. Raises ``SettingError`` for what it raises."""
    try:
        return choose(output)
    except Exception as error:  # whatever a caller's code raises
        raise SettingError(
            f"output: the function must take what forward returns, {type(output).__name__}; it raises {type(error).__name__}: {quoted(error)}."
        ) from error


def _parts(output: Any, config: Any, maps: Sequence[torch.Tensor] = ()) -> tuple[Part, ...]:
    found = [(path, value) for path, value in _leaves(output) if value.is_floating_point() or value.is_complex()]
    if not found:
        raise ModelError("model: its output must hold a float tensor, holds none. Wrap it so that forward returns logits or features.")
    chosen = _answers(found)
    main = min(chosen, key=lambda pair: (_last(pair[0]) != "logits", "logits" not in _last(pair[0])))
    return tuple(_told(path, value, config, maps) for path, value in [main, *(pair for pair in chosen if pair is not main)])


def _answers(found: list[tuple[tuple, torch.Tensor]]) -> list[tuple[tuple, torch.Tensor]]:
    """What of an output is no inner state, cache or loss; where nothing is, its first tensor with an axis, or its first."""
    named = any("logits" in _last(path) and not _INNER.search(_last(path)) for path, _ in found)
    outer = [
        (path, value) for path, value in found
        if value.ndim and not any(_NESTED.search(str(key)) for key in path[:-1])
        and not any(_INNER.search(str(key)) for key in path if named or key != _HEADLESS)
    ]  # fmt: skip
    return outer or [pair for pair in found if pair[1].ndim][:1] or found[:1]


def _wanted(output: Any, names: str, config: Any, maps: Sequence[torch.Tensor]) -> tuple[Part, ...]:
    known = {".".join(map(str, path)) or "output": (path, value) for path, value in _leaves(output)}
    parts = []
    for name in (name.strip() for name in names.split(",") if name.strip()):
        place = list(known)[int(name)] if name not in known and name.isdigit() and int(name) < len(known) else name
        if place not in known:
            raise SettingError(f"output {name!r}: the model's output holds {listed(known)}. {near(name, known)}")
        path, value = known[place]
        if not (value.is_floating_point() or value.is_complex()):
            raise SettingError(f"output {name!r}: must hold numbers with fractions, holds {str(value.dtype)[6:]}. Choose another.")
        parts.append(_told(path, value, config, maps))
    if not parts:
        raise SettingError(f"output: at least one name must be given; the model's output holds {listed(known)}.")
    return tuple(parts)


def _classified(output: Any, parts: tuple[Part, ...], classes: str | None) -> tuple[Part, ...]:
    """Parts with what the caller says of their classes."""
    words = [word.strip() for word in str(classes).split(",")] if classes is not None else []
    if len(words) > len(parts):
        raise SettingError(f"classes {classes!r}: must be at most one for each of {len(parts)} outputs ({listed(p.name for p in parts)}).")
    found = [_said(part, word, _follow(output, part.path)) for part, word in zip(parts, words)]
    return (*found, *parts[len(found) :])


def _said(part: Part, word: str, value: torch.Tensor) -> Part:
    if word in _WORDS:
        return replace(part, kind=_WORDS[word], axis=-1 if _WORDS[word] == VALUES else _class_axis(value.shape, None))
    if not re.fullmatch(r"-?\d+", word) or not -value.ndim <= int(word) < value.ndim:
        raise SettingError(f"classes {word!r}: must be an axis of {part.name} ({value.ndim} axes), independent, or none.")
    axis = int(word) % value.ndim
    return replace(part, kind=CLASSES, axis=-1 if axis == value.ndim - 1 else axis)


def _told(path: tuple, value: torch.Tensor, config: Any, maps: Sequence[torch.Tensor]) -> Part:
    """A part with the kind that its name, its shape and the config tell."""
    name, problem = _last(path), getattr(config, "problem_type", None)
    if "logits" not in name or "logits_per_" in name or value.ndim < 2 or problem == "regression":
        return Part(path, VALUES)
    axis = 1 if any(value is each for each in maps) else _class_axis(value.shape, config)
    if problem == "multi_label_classification" or "mask" in name:
        return Part(path, INDEPENDENT, axis)
    return Part(path, VALUES) if value.shape[axis] == 1 else Part(path, CLASSES, axis)


@contextmanager
def convolved(module: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """What convolutions along one axis give, (batch, channels, length), while the module runs."""
    found: list[torch.Tensor] = []
    keep = lambda part, args, output: found.append(output) if output.ndim == 3 else None
    kinds = (torch.nn.Conv1d, torch.nn.ConvTranspose1d)
    hooks = [part.register_forward_hook(keep) for part in module.modules() if isinstance(part, kinds)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _class_axis(shape: Sequence[int], config: Any) -> int:
    """The last, or the second of maps, unless the config knows the last one's length as a number of classes."""
    counts = {getattr(config, name, None) for name in ("vocab_size", "num_labels")}
    return -1 if len(shape) < 4 or (shape[-1] in counts and shape[1] not in counts) else 1


# Trees of tensors


def _leaves(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    else:
        for key, item in _items(value):
            yield from _leaves(item, (*path, key))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return zip(getattr(value, "_fields", range(len(value))), value)
    held = vars(value) if hasattr(value, "__dict__") and not isinstance(value, type | torch.nn.Module) and not callable(value) else {}
    return [(key, item) for key, item in held.items() if isinstance(item, torch.Tensor)]


def _follow(value: Any, path: tuple) -> torch.Tensor:
    for key in path:
        value = next((item for name, item in _items(value) if name == key), None)
    if not isinstance(value, torch.Tensor):
        raise ModelError(
            f"model: every output must hold {'.'.join(map(str, path)) or 'one tensor'}, as the first did. Give batches of one kind."
        )  # fmt: skip
    return value


def _last(path: tuple) -> str:
    return str(path[-1]) if path else ""


# Chance and curvature


def likelihood(
    output: Any, generator: torch.Generator, outputs: Outputs | None = None, batch: Batch | None = None
) -> tuple[torch.Tensor, int]:  # fmt: skip
    """A scalar whose gradient has the output's Fisher information as covariance, and the number of draws it sums over.

    By a drawn label the gradient has that covariance too; but of a class that none of some thousand labels falls on it would tell next to nothing.
    So a Gaussian is drawn: of classes with probabilities p it is ``√p z - p (√p · z)``, whose covariance is ``diag(p) - p pᵀ``.
    Each further part is weighed as if it had as many draws as the first. Padding is drawn for nowhere.
    """
    drawn = [_drawn(part, value, part.real(batch, value), generator) for part, value in (outputs or Outputs()).of(output)]
    draws = drawn[0][1]
    return sum((total * (draws / max(count, 1)) ** 0.5 for total, count in drawn[1:]), drawn[0][0]), draws


def _drawn(part: Part, value: torch.Tensor, real: torch.Tensor | None, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    if part.kind == VALUES:
        return _projected(_alone(value, real), generator)
    flat = (value if real is None else value[real]).reshape(-1, value.shape[-1]).float()
    chance = torch.randn(flat.shape, generator=generator).to(flat.device)
    if part.kind == CLASSES:
        own = flat.detach().softmax(-1)
        spread = own.sqrt() * chance
        gradient = spread - own * spread.sum(-1, keepdim=True)
    else:
        own = flat.detach().sigmoid()
        gradient = (own * (1 - own)).sqrt() * chance
    return (flat.masked_fill(flat.isneginf(), 0.0) * gradient).sum(), len(flat)


def _projected(value: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    flat = value.reshape(len(value), -1).float() if value.ndim else value.reshape(1, 1).float()
    signs = torch.randint(0, 2, flat.shape, generator=generator).to(flat) * 2 - 1
    return (flat * signs / _norms(flat)).sum(), len(flat)


def _alone(value: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Zeros in the place of padding."""
    if real is None:
        return value
    return torch.where(real if value.ndim == real.ndim else real[..., None], value, torch.zeros_like(value))


def _norms(flat: torch.Tensor) -> torch.Tensor:
    """Norms (rows, 1); of single numbers that of all of them together, for one alone may be next to nothing."""
    squares = flat.detach().square()
    squares = squares.mean().expand(len(flat), 1) if flat.shape[1] == 1 else squares.sum(1, keepdim=True)
    return squares.sqrt().clamp_min(1e-12)


def divergence(output: Any, outputs: Outputs | None = None, batch: Batch | None = None) -> tuple[torch.Tensor, int]:
    """Cross-entropy to the output's own distribution, as summed over draws: KL to it plus a constant.

    It is the mean over all labels of what ``likelihood`` takes at one drawn label, with the same second derivative but no
    chance. Of values half the squared change relative to the square.
    """
    found = [_expected(part, value, part.real(batch, value)) for part, value in (outputs or Outputs()).of(output)]
    draws = found[0][1]
    return sum((total * (draws / max(count, 1)) for total, count in found[1:]), found[0][0]), draws


def _expected(part: Part, value: torch.Tensor, real: torch.Tensor | None) -> tuple[torch.Tensor, int]:
    value = value if value.dtype == torch.float64 else value.float()
    if part.kind == VALUES:
        value = _alone(value, real)
        flat = value.reshape(len(value), -1) if value.ndim else value.reshape(1, 1)
        return 0.5 * ((flat - flat.detach()) / _norms(flat)).square().sum(), len(flat)
    flat = (value if real is None else value[real]).reshape(-1, value.shape[-1])
    own = flat.detach()
    if part.kind == INDEPENDENT:
        return F.binary_cross_entropy_with_logits(flat, own.sigmoid(), reduction="sum"), len(flat)
    return -(own.softmax(-1) * flat.log_softmax(-1).masked_fill(own.isneginf(), 0.0)).sum(), len(flat)
