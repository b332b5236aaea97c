"""What a model's ``forward`` takes, found by trying: inputs by the names in its signature, in the sizes that its config tells."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Generator, Tensor

from modicum.export.small import parts_of
from modicum.models.quiet import hushed

Batch = dict[str, Tensor]
Make = Callable[[Generator], Batch]

ROWS = 2
_TOKENS = 24
# Samples of sound, frames of a spectrogram, frames of a video.
_SAMPLES, _FRAMES, _VIDEO = 4000, 64, 4
# What a decoder is given where the encoder's input is something else.
_DECODED = 12
_PICTURES, _SOUNDS = ("pixel_values", "pixel_values_videos"), ("input_values", "input_features", "past_values")


class UnmadeError(ValueError):
    """No inputs were found that a model runs with."""


def batches(model: Any, count: int, seed: int = 3) -> list[Batch]:
    """Different batches of two rows that the forward of ``model`` takes. Raises ``UnmadeError``."""
    generator = torch.Generator().manual_seed(seed)
    make = maker(model)
    return [make(generator) for _ in range(count)]


def maker(model: Any) -> Make:
    """What makes batches that ``model`` runs with: the first of all forms that seem possible. Raises ``UnmadeError``."""
    said: list[str] = []
    for form in forms(model):
        if (error := _run(model, form)) is None:
            return form
        said.append(f"{type(error).__name__}: {error}")
        if (told := next((each for each in _told(error, form, model) if _run(model, each) is None), None)) is not None:
            return told
    raise UnmadeError(next(iter(said), "no input of its forward is known"))


def _run(model: Any, form: Make) -> Exception | None:
    """What a forward raises at a form, or None."""
    with torch.random.fork_rng(devices=[]), hushed(), torch.no_grad():
        try:
            model(**form(torch.Generator().manual_seed(0)))
        except Exception as error:  # whatever a forward raises at what it was not made for
            return error
    return None


def forms(model: Any) -> Iterator[Make]:
    """Forms of batches, the likeliest first."""
    names = list(inspect.signature(model.forward).parameters)
    main = getattr(model, "main_input_name", "input_ids")
    rest = [name for name in ("input_ids", *_PICTURES, *_SOUNDS) if name in names and name != main]
    wanted = [main, *rest] if main in names else rest
    if not wanted:
        return
    decoder = [name for name in ("decoder_input_ids", "decoder_input_values") if name in names]
    pairs = ([wanted[0], other, *decoder] for other in wanted[1:])
    for chosen in chain(pairs, ([wanted[0], *decoder], [wanted[0]], wanted)):
        yield from _sized(model, list(dict.fromkeys(chosen)))


def _sized(model: Any, names: list[str]) -> Iterator[Make]:
    """Forms with these inputs in all sizes that may be meant."""
    choices = [(name, _choices(model, name)) for name in names]
    most = max((len(shapes) for _, shapes in choices), default=0)
    for place in range(most):
        chosen = {name: shapes[min(place, len(shapes) - 1)] for name, shapes in choices if shapes}
        if len(chosen) == len(names):
            yield partial(_together, chosen)


def _together(chosen: dict[str, Callable[[Generator], Tensor]], generator: Generator) -> Batch:
    return {name: make(generator) for name, make in chosen.items()}


def _choices(model: Any, name: str) -> list[Callable[[Generator], Tensor]]:
    """What an input may be, the likeliest first."""
    if name in ("input_ids", "decoder_input_ids"):
        length = _TOKENS if name == "input_ids" else _DECODED
        lone = partial(_ids, model, length=length)
        return [lone, lambda generator: torch.stack([lone(generator), lone(generator)], 1)]  # the latter of several choices
    shapes = _picture_shapes(model) if name in _PICTURES else _sound_shapes(model, name)
    return [partial(_drawn, shape) for shape in shapes]


def _drawn(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(ROWS, *shape, generator=generator)


def _ids(model: Any, generator: Generator, *, length: int) -> Tensor:
    text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    most = min(getattr(text, "vocab_size", None) or 256, 250)
    length = 32 if type(model).__name__.startswith("Reformer") else length
    found = torch.randint(3, most, (ROWS, length), generator=generator)
    return torch.where(torch.isin(found, torch.tensor(_special(model))), most, found)


def _special(model: Any) -> list[int]:
    """Tokens that stand for something else than text."""
    named = [(name, value) for part in parts_of(model.config) for name, value in vars(part).items()]
    return [value for name, value in named if re.search(r"_token_(id|index)$", name) and type(value) is int]


def _picture_shapes(model: Any) -> list[tuple[int, ...]]:
    channels = next(iter(_declared(model, "num_channels", "in_channels", "in_chans")), 3)
    sizes = [*_declared(model, "image_size", "img_size", "input_size", "resolution"), 64, 224]
    pairs = list(dict.fromkeys((size, size) if isinstance(size, int) else tuple(size)[-2:] for size in sizes))
    frames = next(iter(_declared(model, "num_frames")), _VIDEO)
    return [(channels, *pair) for pair in pairs] + [(frames, channels, *pair) for pair in pairs]


def _sound_shapes(model: Any, name: str) -> list[tuple[int, ...]]:
    bands = [*_declared(model, "num_mel_bins", "n_mels", "feature_size", "input_feat_per_channel", "num_input_channels"), 80]
    lengths = [*(2 * most for most in _declared(model, "max_source_positions")), *_declared(model, "max_length", "context_length"), _FRAMES]
    spectra = [shape for length in lengths for band in bands for shape in ((band, length), (length, band))]
    waves: list[tuple[int, ...]] = [(_SAMPLES,), (1, _SAMPLES)]
    if name == "past_values":
        return [*((length,) for length in lengths), *spectra]
    return [*waves, *spectra] if name == "input_values" else [*spectra, *waves]


def _declared(model: Any, *names: str) -> list[Any]:
    """What the configs inside a config say under these names."""
    found = [getattr(part, name, None) for part in parts_of(model.config) for name in names]
    return list(dict.fromkeys(tuple(value) if isinstance(value, list) else value for value in found if value))


def _told(error: Exception, form: Make, model: Any) -> Iterator[Make]:
    """The form with as many tokens in the place of pictures or sound as an error says that they have; it may count their numbers."""
    found = re.search(r"tokens: (\d+),? features:? (\d+)", str(error))
    kinds = [kind for kind in ("image", "video", "audio") if kind in str(error).lower()] or ["image"]
    if found is not None:
        counted = int(found[2]) // ROWS
        yield from (partial(_placed, form, model, kinds[0], counted // wide) for wide in (1, *_declared(model, "hidden_size")))


def _placed(form: Make, model: Any, kind: str, count: int, generator: Generator) -> Batch:
    """A batch whose texts begin with the tokens that stand for a picture or a sound."""
    batch = form(generator)
    token = next(iter(_declared(model, *(f"{kind}_token_{word}" for word in ("id", "index")))), 0)
    marks = torch.full((ROWS, count), token)
    return batch | {"input_ids": torch.cat([batch["input_ids"][:, :1], marks, batch["input_ids"][:, 1:]], 1)}
