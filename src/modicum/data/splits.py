"""Three disjoint parts of the data: one to measure with, one to choose with, one to report with."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from modicum.core.errors import DataError, SettingError
from modicum.core.finite import finite
from modicum.core.sources import is_own, sources_of
from modicum.data.mixture import apportioned, mixed
from modicum.data.text import SHIPPED_PARTS, Documents, encode, read_all, shipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Tensor] | tuple[Tensor, ...]
"""What a model's forward takes: tensors by keyword, or by position."""

PARTS = SHIPPED_PARTS
# Shares of validation and test; calibration has the rest. Windows are plenty, so calibration, which drives every statistic, gets
# most; batches are few, so the two small parts get more.
WINDOW_SHARES = (0.1, 0.2)
BATCH_SHARES = (0.2, 0.2)
# Modules that have run once, and whether they wrote into their batch.
_WRITES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class Splits:
    """Batches in three disjoint parts: ``calibration`` (statistics), ``validation`` (choosing), ``test`` (reported quality).

    ``source`` names where they came from; ``notes`` says, in sentences, what a reader of the results should know of them;
    ``hashes`` holds the SHA-256 of each part's tensors: their names, types, shapes and bytes, in order. ``taken`` says what was found at
    ``source`` and what of it is used, as a JSON value.
    """

    calibration: list[Batch]
    validation: list[Batch]
    test: list[Batch]
    source: str
    notes: tuple[str, ...]
    hashes: dict[str, str]
    taken: dict[str, Any] = field(default_factory=dict)

    def on(self, device: torch.device) -> Splits:
        """The same on ``device``."""
        there = lambda part: [placed(batch, device) for batch in part]
        return replace(self, calibration=there(self.calibration), validation=there(self.validation), test=there(self.test))


def placed(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on ``device``."""
    return _map(batch, lambda value: value.to(device))


def from_text(
    path: str | os.PathLike[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int = 128,
    tokens: int = 512,
    seed: int = 0,
    batch: int = 8,
    test_samples: int = 64,
    text_column: str | None = None,
    write: Callable[[int], Tensor] | None = None,
) -> Splits:
    """Split a text, or the shipped texts where ``path`` is None, into windows of ``tokens`` tokens.

    Documents that occur twice are kept once, ordered by a hash of their text (so that folders and topics mix, and the parts hold the
    same text whatever the seed), and joined to one stream. Its first 70 % belong to calibration, the next 10 % to validation, the last
    20 % to test; in each region ``seed`` draws up to ``samples``, half of ``test_samples``, and ``test_samples`` windows. The shipped
    texts are three already and are drawn from alike. Fewer windows than asked for are a note. ``text_column`` names the column of a table.
    Of several sources in ``path``, such as ``code/=3,letters.txt``, each is divided so by itself, and each part has windows of all by their weights.
    The source ``self`` is what the model writes itself, as many windows as ``write`` is asked for: for calibration alone; validation and test are of
    the others, or of the shipped texts.

    Shapes: each batch is ``{"input_ids": int64 [at most batch, tokens]}``; windows are full, so there is no mask.

    Raises:
        SettingError: a count below 1.
        DataError: a text that cannot be read, or of fewer than three windows.

    """
    counts = {"samples": samples, "tokens": tokens, "batch": batch, "test_samples": test_samples}
    if small := [f"{name}={count}" for name, count in counts.items() if count < 1]:
        raise SettingError(f"data: counts must be at least 1, {', '.join(small)} came. Raise them.")
    if path is None and text_column is not None:
        raise SettingError("--text-column: names a column of --data, which was not given. Give both, or neither.")
    sources = dict(sources_of(path)) if path is not None else {"shipped": 1.0}
    own = next((place for place, source in enumerate(sources) if is_own(source)), None)
    weights = [list(sources.values())] * len(PARTS)
    if own is not None:  # it calibrates, and nothing is judged on it
        sources |= {"shipped": 0.0} if len(sources) == 1 else {}
        judged = [float(place != own) * (weight or 1.0) for place, weight in enumerate(sources.values())]
        weights = [list(sources.values()), judged, judged]
    named = {name for name in sources if path is not None and not (own is not None and sources[name] == 0)}
    found = [
        _own_streams(write, apportioned(samples, weights[0])[place], tokens) if place == own
        else _file_streams(source, tokenizer, tokens, text_column) if source in named else _shipped_streams(tokenizer)
        for place, source in enumerate(sources)
    ]  # fmt: skip
    notes, told = [note for _, each, _ in found for note in each], [each for _, _, each in found]
    parts: list[list[Batch]] = []
    shares: dict[str, list[int]] = {}
    for place, (name, wanted) in enumerate(zip(PARTS, (samples, max(1, test_samples // 2), test_samples))):
        chosen, shares[name] = mixed([streams[place] for streams, _, _ in found], weights[place], tokens, wanted, seed)
        if len(chosen) < wanted:
            notes.append(f"The text gives {len(chosen)} windows of {tokens} tokens for {name}, of the {wanted} asked for.")
        parts.append([{"input_ids": rows} for rows in chosen.split(batch)])
    taken = told[0]
    if len(sources) > 1:
        windows = [dict(zip(PARTS, counts)) for counts in zip(*shares.values())]
        each = [{"source": name, "weight": sources[name], **one, **counts} for name, one, counts in zip(sources, told, windows)]
        total = {name: sum(one.get(name, 0) for one in told) for name in ("files", "documents", "tokens")}
        columns = sorted({column for one in told for column in one.get("columns", [])})
        taken = {"kind": "text", **total, **({"columns": columns} if columns else {}), "sources": each}
    used = sum(count_tokens(part) for part in parts)
    taken |= {"used_tokens": used, "share": used / max(1, taken["tokens"])}
    return replace(parted(parts, "shipped" if path is None else os.fspath(path), notes), taken=taken)


def from_batches(iterable: Iterable[Any], seed: int = 0) -> Splits:
    """Split the batches of any iterable: dicts of tensors, tensors, or tuples and lists of tensors.

    A dict stays one; anything else becomes a tuple of positional arguments. A lone dict or tensor is one batch. Batches that occur twice
    are kept once. From three batches on, whole batches are dealt out in an order drawn by ``seed``, about 60 % to calibration, 20 % to
    validation, 20 % to test, at least one each; of fewer, the rows are. Tensors stay on their device and are not copied where they need
    not be, so an iterable must not write into a batch it has given.

    Shapes: the first axis is the row, where rows must be split; all else is the model's business.

    Raises:
        DataError: an item that is none of these or holds no row; NaN or infinity; fewer than three rows; rows to be split of
            tensors whose first axes differ.

    """
    batches = [_batch(item, number) for number, item in enumerate(batch_items(iterable))]
    unique = list({_digest([batch]): batch for batch in batches}.values())
    notes = []
    if len(unique) < len(batches):
        notes.append(f"{len(batches) - len(unique)} of {len(batches)} batches repeat another and were left out.")
    generator = torch.Generator().manual_seed(seed)
    if len(unique) >= len(PARTS):
        order = torch.randperm(len(unique), generator=generator)
        parts = [[unique[i] for i in chosen.tolist()] for chosen in order.split(_shares(len(unique), BATCH_SHARES))]
    else:
        parts = _split_rows(unique, generator)
        notes.append("Fewer than three different batches came: their rows were divided among the parts.")
    return parted(parts, "batches", notes)


def call(module: Callable[..., Any], batch: Batch, *, cached: bool = False) -> Any:
    """Run a module on a batch: a dict by keyword, a tuple by position.

    Without the cache that generation wants, unless ``cached`` leaves that to the module or the batch asks for it: it holds two tensors of every
    block. A module that writes into what it is given gets a copy each time.
    """
    settings = {}
    if not cached:
        names = list(inspect.signature(getattr(module, "forward", module)).parameters)
        given = batch if isinstance(batch, Mapping) else names[: len(batch)]
        settings = {"use_cache": False} if "use_cache" in names and "use_cache" not in given else {}
    mine = batch if isinstance(module, nn.Module) and _WRITES.get(module) is False else _cloned(batch)
    output = module(**mine, **settings) if isinstance(mine, Mapping) else module(*mine, **settings)
    if isinstance(module, nn.Module) and module not in _WRITES:
        pairs = zip(dict(_entries(mine)).values(), dict(_entries(batch)).values())
        _WRITES[module] = not all(own.is_meta or torch.equal(own, other) for own, other in pairs if isinstance(own, Tensor))
    return output


def _cloned(batch: Batch) -> Batch:
    fresh = {name: value.clone() if isinstance(value, Tensor) else value for name, value in _entries(batch)}
    return fresh if isinstance(batch, Mapping) else tuple(fresh.values())


def one_row(batch: Batch) -> Batch:
    """The first row of a batch, or all of it where its tensors do not share their first axis."""
    return some_rows(batch, 0, 1)


def some_rows(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start`` to ``stop`` of a batch, or all of it where those are all, and where its tensors do not share their first axis."""
    rows = _rows(batch) if _entries(batch) else None
    return batch if rows is None or (start == 0 and stop >= rows) else slice_rows(batch, start, stop)


def each_row(batch: Batch) -> list[Batch]:
    """Every row of a batch as a batch of its own, or the whole where its tensors do not share their first axis."""
    rows = _rows(batch) if _entries(batch) else None
    return [batch] if rows is None else [slice_rows(batch, row, row + 1) for row in range(rows)]


def count_rows(batch: Batch) -> int:
    """Count the rows of a batch: the length of its first tensor's first axis; one where that has none."""
    first = next((value for _, value in _entries(batch)), None)
    return len(first) if first is not None and first.ndim else 1


def count_tokens(batches: Iterable[Batch]) -> int:
    """Count rows × sequence length where a batch has integer ``input_ids``, else rows; padding counts."""
    return sum(_tokens(batch) for batch in batches)


def slice_rows(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start`` to ``stop`` of a batch, as views.

    Shapes: every tensor ``[rows, ...]`` → ``[stop - start, ...]``, fewer where the batch ends before.

    Raises:
        DataError: the tensors do not share their first axis.

    """
    if _rows(batch) is None:
        shapes = ", ".join(f"{key}: {list(value.shape)}" for key, value in _entries(batch))
        raise DataError(f"data: all tensors of the batch must share their first axis, shapes came as {shapes}. Give whole batches.")
    return _map(batch, itemgetter(slice(start, stop)))


def _shipped_streams(tokenizer: PreTrainedTokenizerBase) -> tuple[list[Tensor], list[str], dict[str, Any]]:
    """One stream for each part, from the texts in the package, the note that says so, and what was found."""
    note = (
        "No data was given: the texts shipped with modicum, sources and help of Python's standard library, were used for all three parts."
    )
    documents = [shipped(part) for part in PARTS]
    streams = [encode(part, tokenizer) for part in documents]
    return streams, [note], {"kind": "text", "documents": sum(map(len, documents)), "tokens": sum(map(len, streams))}


def _own_streams(write: Callable[[int], Tensor] | None, windows: int, tokens: int) -> tuple[list[Tensor], list[str], dict[str, Any]]:
    """A stream for calibration that the model writes, and none for what is judged."""
    if write is None:
        raise DataError("data: self stands for text that the model writes, and there is no model that could. Give a text.")
    stream = write(windows).reshape(-1) if windows else torch.empty(0, dtype=torch.int64)
    note = f"{windows} windows of calibration were written by the model itself; nothing is judged on them."
    return [stream, stream[:0], stream[:0]], [note], {"kind": "text", "documents": windows, "tokens": len(stream)}


def _file_streams(
    path: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase, tokens: int, text_column: str | None
) -> tuple[list[Tensor], list[str], dict[str, Any]]:
    """One stream for each part, adjoining regions of the text at ``path``, what is to be known of it, and what was found."""
    found = read_all(path, tokenizer=tokenizer, text_column=text_column)
    unique = sorted(set(found.texts), key=lambda document: hashlib.sha256(document.encode()).digest())
    stream = encode(unique, tokenizer)
    count = len(stream) // tokens
    if count < len(PARTS):
        raise DataError(
            f"data: {os.fspath(path)} must give each of three parts a window of {tokens} tokens, {3 * tokens} in all; "
            f"{len(stream)} were found. Give more text or ask for fewer tokens a window."
        )
    regions = stream[: count * tokens].split([share * tokens for share in _shares(count, WINDOW_SHARES)])
    taken = {"kind": "text", "files": found.files, "documents": len(unique), "tokens": len(stream)}
    taken |= {"columns": sorted(found.columns)} if found.columns else {}
    return list(regions), _remarks(found, len(found.texts) - len(unique)), taken


def _remarks(found: Documents, repeated: int) -> list[str]:
    """What was left out of a text, in sentences."""
    notes = [f"{repeated} of {len(found.texts)} documents repeat another and were left out."] if repeated else []
    notes += [f"{found.blank} rows without text were left out."] if found.blank and found.columns else []
    return notes + ([f"The text is longer than is read: its first {sum(map(len, found.texts))} characters were."] if found.cut else [])


def _shares(total: int, shares: tuple[float, float]) -> list[int]:
    """Sizes of the three parts of ``total`` ≥ 3 things: at least one each, calibration what the other two leave."""
    validation, test = (max(1, round(total * share)) for share in shares)
    return [total - validation - test, validation, test]


def divided(things: Sequence[Any], shares: tuple[float, float]) -> list[list[Any]]:
    """Three adjoining parts of at least three things; the shares are those of the second and the third."""
    sizes = _shares(len(things), shares)
    ends = [0, sizes[0], sizes[0] + sizes[1], len(things)]
    return [list(things[start:end]) for start, end in pairwise(ends)]


def parted(parts: Sequence[list[Batch]], source: str, notes: list[str]) -> Splits:
    """Put the three parts under their names, with their hashes."""
    hashes = {name: _digest(part) for name, part in zip(PARTS, parts)}
    calibration, validation, test = parts
    return Splits(calibration, validation, test, source, tuple(notes), hashes)


def batch_items(iterable: Iterable[Any]) -> Iterable[Any]:
    """Make a lone batch an iterable of one: iterating it would give rows, or names."""
    if isinstance(iterable, Tensor | Mapping):
        return [iterable]
    if not isinstance(iterable, Iterable):
        raise DataError(f"data: data must be an iterable of batches, {type(iterable).__name__} came. Give a list or a data loader.")
    return iterable


def _batch(item: Any, number: int) -> Batch:
    """Bring one item to a checked batch."""
    if isinstance(item, Mapping):
        batch: Batch = dict(item)
    elif isinstance(item, tuple | list):
        batch = tuple(item)
    else:
        batch = (item,)
    for key, value in _entries(batch):
        _check(value, f"data: batch {number}, {key!r},")
    batch = _map(batch, lambda value: value.clone() if value.is_inference() else value)  # nothing can be differentiated through those
    if not batch or _rows(batch) == 0:
        raise DataError(f"data: batch {number} must hold at least one row, none came. Leave it out.")
    return batch


def _check(value: Any, who: str) -> None:
    """Refuse what is no dense tensor, or not finite."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        raise DataError(f"{who} must be a dense tensor, {type(value).__name__} came. Convert it, or leave it out.")
    if not finite(value):
        raise DataError(f"{who} must be finite, NaN or infinity came. Mend or leave out the batch; masks may use the type's lowest number.")


def _split_rows(batches: list[Batch], generator: torch.Generator) -> list[list[Batch]]:
    """Deal the rows of all batches out to three parts; rows of one batch that meet in a part stay one batch."""
    rows = [_rows(batch) for batch in batches]
    if None in rows:
        raise DataError(
            "data: of fewer than three batches all tensors must share their first axis, so that rows can be divided; "
            f"those of batch {rows.index(None)} do not. Give at least three different batches."
        )
    places = [(number, row) for number, count in enumerate(rows) for row in range(count or 0)]
    if len(places) < len(PARTS):
        raise DataError(f"data: data must hold at least three different rows, one for each part, {len(places)} came. Give more.")
    order = torch.randperm(len(places), generator=generator).split(_shares(len(places), BATCH_SHARES))
    return [_take([places[i] for i in sorted(chosen.tolist())], batches) for chosen in order]


def _take(places: list[tuple[int, int]], batches: list[Batch]) -> list[Batch]:
    """Batches of the rows at (batch, row) places."""
    part = []
    for number, batch in enumerate(batches):
        if rows := [row for owner, row in places if owner == number]:
            part.append(_map(batch, itemgetter(rows)))
    return part


def _entries(batch: Batch) -> list[tuple[Any, Tensor]]:
    """Keys or positions with their tensors."""
    return list(batch.items()) if isinstance(batch, Mapping) else list(enumerate(batch))


def _map(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """Batch of the same kind with a function applied to each tensor."""
    if isinstance(batch, dict):
        return {key: function(value) for key, value in batch.items()}
    return tuple(function(value) for value in batch)


def _rows(batch: Batch) -> int | None:
    """Length of the first axis, where all tensors share it."""
    lengths = {value.shape[0] if value.ndim else None for _, value in _entries(batch)}
    return lengths.pop() if len(lengths) == 1 else None


def _tokens(batch: Batch) -> int:
    """Tokens of one batch, or rows where it has no token ids."""
    ids = batch.get("input_ids") if isinstance(batch, dict) else None
    if ids is not None and not ids.is_floating_point():
        return ids.numel()
    first = _entries(batch)[0][1]
    return first.shape[0] if first.ndim else 1


def chance_of(batch: Batch) -> int:
    """The seed of what a forward draws on a batch: it depends on the batch alone."""
    return int(_digest([batch])[:8], 16)


def _digest(batches: Iterable[Batch]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors; the order of a dict's keys does not matter."""
    digest = hashlib.sha256()
    for batch in batches:
        for key, value in sorted(_entries(batch), key=lambda entry: str(entry[0])):
            digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
