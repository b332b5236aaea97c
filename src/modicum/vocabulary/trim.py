"""A checkpoint with the part of its vocabulary that a corpus uses."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from modicum.core.arguments import checked
from modicum.core.errors import DataError, ModelError, SettingError, quoted
from modicum.core.finite import finite
from modicum.core.output import require_free, writing
from modicum.core.progress import Quiet
from modicum.data.splits import Batch
from modicum.data.text import read_documents
from modicum.models.located import locate
from modicum.models.model import Model
from modicum.models.open import model_class, open_model, read_config, skeleton
from modicum.models.weights import CheckpointWeights
from modicum.sweep import Script, Sweep
from modicum.sweep.outputs import output_tensor
from modicum.vocabulary import _rows, _tokenizer

_TOGETHER = 64  # texts encoded at once
_SEQUENCES, _TOKENS = 8, 32  # of the corpus, for the comparison of outputs
_LINES = 2000  # of the corpus, compared one by one where whole texts lose tokens
# Products of other widths may be summed in another order. This share of the largest output is far above that, and far below any mistake.
_ROUNDING = 2.0**-18
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".index.json")


@dataclass(frozen=True)
class Trimmed:
    """What ``trim`` wrote, and what it measured.

    ``before`` and ``kept`` count tokens, ``rows`` those of the new embedding (``kept``, padded to the multiple); ``saved`` is in bytes of the
    weight files. ``changed``: share of the corpus' tokens that the new tokenizer encodes otherwise. ``difference``: the largest between an
    output of the old and of the new model, over the tokens kept; 0 where the head's products of both widths are summed in one order.
    ``left_out`` names files that hold the old vocabulary in a format that is not rewritten, and receipts of earlier runs.
    """

    out: Path
    before: int
    kept: int
    rows: int
    saved: int
    changed: float
    difference: float
    left_out: tuple[str, ...] = ()


@checked(but=("corpus",))
def trim(
    model_dir: str | Path,
    corpus: str | os.PathLike[str] | Iterable[str],
    out: str | Path,
    *,
    size: int | None = None,
    multiple: int = 1,
    overwrite: bool = False,
    text_column: str | None = None,
    progress: Quiet | None = None,
) -> Trimmed:
    """Write the checkpoint in ``model_dir`` with the part of its vocabulary that ``corpus`` uses.

    A token that no text of the job contains costs a row of the embedding and one of the head, and changes nothing else. What stays:
    special and added tokens, every token of the corpus' encodings, what any text can be spelled with (single characters, bytes, the
    unknown token), and of BPE every token that a kept one is merged from. Ids are renumbered in their old order in weights, config,
    generation config and the tokenizer's files; every other tensor is copied byte for byte.

    For a text whose tokens all stay, the new tokenizer gives the same tokens, and the model the same logits ``z`` for each token kept. The
    probabilities are those of the original given that the next token is one of the kept set K:

        log p'(t) = z_t - log Σ_{s in K} exp z_s = log p(t) - log p(K)

    so each log-probability rises by what the removed tokens had. Any other text is spelled with smaller tokens. Both promises are tested
    on the corpus before anything appears at ``out``. One case lies outside: a word that WordPiece gave up on may be spelled afterwards,
    where the vocabulary has pieces whose characters are no pieces themselves; a corpus with such a word is refused.

    ``model_dir``: ``demo``, a directory or a Hugging Face id. ``corpus``: a path that ``read_documents`` reads (of a table the
    column ``text_column``), or texts. ``size``: the most tokens to keep; the most frequent stay, ties by id, each with what it is merged from.
    ``multiple``: the vocabulary is padded to a multiple of it with rows of zeros, whose logits are then zero too (or the head's bias, which is
    padded alike): leave it at 1 unless the runtime asks for more. ``overwrite``: replace ``out`` where it exists.

    *Shapes*: embeddings (before, width) become (rows, width), every other tensor with one entry per token alike along that axis.

    *Needs and cost*: safetensors and a fast tokenizer (BPE, WordPiece or Unigram). The corpus is encoded three times, the model
    run twice on 256 tokens, block by block. Memory for one tensor or one block and the embeddings, never for the model.

    *Reduces to*: a copy, where the corpus uses every token.

    *Raises*: ``SettingError`` for an ``out`` that exists and counts below 1; ``DataError`` for a corpus without text; ``BudgetError`` for a
    ``size`` below what must stay; ``ModelError`` for a model with more than one vocabulary or a weight that follows it in an unknown way,
    without tokenizer or safetensors, and where a promise does not hold.
    """
    if multiple < 1 or (size is not None and size < 1):
        raise SettingError(f"trim: size and multiple must be at least 1, {size} and {multiple} came. Raise them.")
    directory, out = locate(model_dir), Path(out)
    inputs = [directory, *([Path(corpus)] if isinstance(corpus, str | os.PathLike) and Path(corpus).exists() else [])]
    require_free(out, inputs, overwrite)
    old = _Checkpoint(str(model_dir), directory)
    shown = progress or Quiet()
    shown.start("reading the texts", 1)
    texts = _texts(corpus, old.model, text_column)
    counts = _counts(old, texts)
    kept = old.choose(counts, size)
    rows = -(-len(kept) // multiple) * multiple
    with writing(out, inputs, overwrite) as made:
        shown.start("export", 1)
        written, left_out = old.write(made, kept, rows)
        shown.start("comparing with the original", 1)
        changed, difference = _compare(old, made, kept, rows, texts)
    return Trimmed(out, old.rows, len(kept), rows, old.weights.shards.nbytes - written, changed, difference, left_out)


class _Checkpoint:
    """The checkpoint to trim: its model with weights on disk, its tokenizer, and the tensors and fields that follow the vocabulary."""

    def __init__(self, name: str, directory: Path):
        if not any(directory.glob("*.safetensors")):
            raise ModelError(f"{name}: must hold safetensors, holds none. Load the model with Transformers and save it anew.")
        self.name, self.directory = name, directory
        self.model = open_model(directory)
        self.model.name = name
        assert isinstance(self.model.weights, CheckpointWeights)
        self.weights = self.model.weights
        self.body = _tokenizer.read_tokenizer(directory)
        self.tokenizer = _fast(self.model)
        self.ids = self.tokenizer.get_vocab()
        self.rows = _rows.vocabulary_rows(self.model.module, name)
        self.config = _tokenizer.read_json(directory / "config.json")
        self.fields = _rows.size_fields(self.model.config, self.rows, name)
        self.axes = _rows.stored_axes(self.weights, self._axes(), self.rows, name)

    def _axes(self) -> _rows.Axes:
        """Found by building the model's class with one token more."""
        more = self.rows + 1
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder) / "config.json", _tokenizer.json_text(_rows.resized_config(self.config, self.fields, more)))
            config = read_config(Path(folder))
        other = skeleton(model_class(config, self.name), config)
        return _rows.vocabulary_axes(self.model.module, other, self.rows, more, self.name)

    def choose(self, counts: Mapping[int, int], size: int | None) -> list[int]:
        """Ids that stay."""
        always = _tokenizer.required(self.body) | set(self._named())
        always |= {self.ids[token] for token in (*self.model.tokenizer.get_added_vocab(), *self.model.tokenizer.all_special_tokens)}
        if beyond := [index for index in always | set(counts) if index >= self.rows]:
            raise ModelError(
                f"{self.name}: ids of its tokenizer must be below the {self.rows} tokens of its embedding, {max(beyond)} is not. "
                "Fetch the tokenizer that belongs to the model."
            )
        return _tokenizer.choose(always, counts, _tokenizer.ancestors(self.body), size, self.name)

    def _named(self) -> Iterator[int]:
        """Ids that the configs name, as far as they are of this vocabulary: some models say -1 or a number too large for none."""
        found: set[int] = set()
        paths = [self.directory / name for name in ("generation_config.json", "tokenizer_config.json")]
        for body in (self.config, self.model.config.to_dict(), *(_tokenizer.read_json(path) for path in paths if path.is_file())):
            _tokenizer.renumbered_config(body, _tokenizer.noting(found), lambda _: False)
        return (index for index in found if 0 <= index < self.rows)

    def write(self, out: Path, kept: Sequence[int], rows: int) -> tuple[int, tuple[str, ...]]:
        """Write everything; the bytes of the weight files, and the names of what could not be rewritten."""
        table = {before: after for after, before in enumerate(kept)}

        def number(index: int) -> int:
            return table.get(index, index)

        config = _tokenizer.with_defaults(self.config, self.model.config.to_dict(), number)
        config = _tokenizer.renumbered_config(_rows.resized_config(config, self.fields, rows), number, table.__contains__)
        body = _tokenizer.renumbered_tokenizer(self.body, table)
        _write(out / "config.json", _tokenizer.json_text(config))
        _write(out / "tokenizer.json", _tokenizer.json_text(body))
        left_out = []
        for path in sorted(self.directory.iterdir()):
            if not path.is_file() or path.name.startswith(".") or path.name.endswith(_WEIGHTS) or (out / path.name).exists():
                continue
            if _tokenizer.is_foreign(path, body):
                left_out.append(path.name)
            elif (text := _tokenizer.companion(path, body, table, number)) is not None:
                _write(out / path.name, text)
            else:
                shutil.copyfile(path, out / path.name)
        return _rows.write_rows(self.weights.shards, out, self.axes, kept, rows), tuple(left_out)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _fast(model: Model) -> Any:
    """The tokenizer as the tokenizers library has it, without truncation or padding. Raises ``ModelError`` for one in Python."""
    fast = getattr(model.tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise ModelError(f"{model.name}: its tokenizer must be one of the tokenizers library, is {type(model.tokenizer).__name__}.")
    fast.no_truncation()
    fast.no_padding()
    return fast


# The corpus


def _texts(corpus: str | os.PathLike[str] | Iterable[str], model: Model, text_column: str | None) -> list[str]:
    if isinstance(corpus, str | os.PathLike):
        return read_documents(corpus, tokenizer=model.tokenizer, text_column=text_column)
    texts = list(corpus)
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"trim: a corpus must be a path or texts, {type(text).__name__} came. Pass an iterable of str.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"trim: a text must be valid Unicode, one holds half of a surrogate pair: {quoted(repr(text), 60)}. Mend it."
            ) from None
    return texts


def _counts(old: _Checkpoint, texts: Sequence[str]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for encoding in _encoded(old.tokenizer, texts):
        counts.update(encoding.ids)
    if not counts:
        raise DataError("trim: the corpus must hold text, none was found. Give the texts that the model will work on.")
    return counts


def _encoded(tokenizer: Any, texts: Iterable[str]) -> Iterator[Any]:
    waiting = iter(texts)
    while some := list(islice(waiting, _TOGETHER)):
        yield from tokenizer.encode_batch(some, add_special_tokens=False)


# The promises


def _compare(old: _Checkpoint, made: Path, kept: Sequence[int], rows: int, texts: Sequence[str]) -> tuple[float, float]:
    """Share of the corpus' tokens encoded otherwise, and the largest difference of outputs. Raises ``ModelError`` where a promise fails."""
    new = open_model(made)
    new.name = old.name
    tokenizer, table = _fast(new), {before: after for after, before in enumerate(kept)}
    expected = {token: table[index] for token, index in old.ids.items() if index in table}
    if (found := tokenizer.get_vocab()) != expected:
        token = min(found.items() ^ expected.items())[0]
        raise ModelError(
            f"{old.name}: a trimmed tokenizer must number its tokens as written, {token!r} became {found.get(token)} "
            f"instead of {expected.get(token)}. Keep this vocabulary."
        )
    changed = _changed(old, tokenizer, table, texts)
    if changed:
        lines = (line for text in texts for line in text.splitlines(keepends=True))
        _changed(old, tokenizer, table, islice(lines, _LINES))
    return changed, _difference(old, new, kept, rows, _sample(old, table, texts))


def _changed(old: _Checkpoint, tokenizer: Any, table: Mapping[int, int], texts: Iterable[str]) -> float:
    texts, total, changed = list(texts), 0, 0
    for text, before, after in zip(texts, _encoded(old.tokenizer, texts), _encoded(tokenizer, texts)):
        if all(index in table for index in before.ids) and [table[index] for index in before.ids] != after.ids:
            raise ModelError(
                f"{old.name}: texts whose tokens all stay must be encoded as before, {quoted(repr(text), 60)} is not. Keep this vocabulary."
            )
        total += len(before.ids)
        changed += (Counter(zip(before.offsets, before.tokens)) - Counter(zip(after.offsets, after.tokens))).total()
    return changed / max(total, 1)


def _sample(old: _Checkpoint, table: Mapping[int, int], texts: Sequence[str]) -> torch.Tensor:
    """Sequences of kept tokens from the corpus, in their old ids."""
    length = min(_TOKENS, max(2, getattr(old.model.config.get_text_config(), "max_position_embeddings", None) or _TOKENS) // 2)
    stream = (index for encoding in _encoded(old.tokenizer, texts) for index in encoding.ids if index in table)
    found = list(islice(stream, _SEQUENCES * length)) or [next(iter(table))]
    found += found * (length // len(found) + 1) if len(found) < length else []
    return torch.tensor(found[: len(found) // length * length]).view(-1, length)


@torch.no_grad()
def _difference(old: _Checkpoint, new: Model, kept: Sequence[int], rows: int, sample: torch.Tensor) -> float:
    chosen = torch.tensor(kept)
    ours, theirs = (_outputs(old.model, sample), _outputs(new, torch.searchsorted(chosen, sample)))
    if ours.shape[-1] == old.rows and theirs.shape[-1] == rows:
        ours, theirs = ours[..., chosen], theirs[..., : len(kept)]
    if ours.shape != theirs.shape or not finite(theirs):
        raise ModelError(f"{old.name}: its outputs must be finite and keep their shape {list(ours.shape)}, became {list(theirs.shape)}.")
    difference = float((ours.double() - theirs.double()).abs().max())
    if difference > max(_ROUNDING, torch.finfo(ours.dtype).eps) * float(ours.abs().max()):
        raise ModelError(
            f"{old.name}: the outputs for kept tokens must stay as they were, differ by {difference:.3g}. The model uses the numbers of "
            "tokens for more than rows. Keep this vocabulary."
        )
    return difference


def _outputs(model: Model, ids: torch.Tensor) -> torch.Tensor:
    """Logits, or hidden states of a model without a head, one block in memory at a time."""
    batch: Batch = {"input_ids": ids}
    if getattr(model.config, "is_encoder_decoder", False):
        batch = {"input_ids": ids, "decoder_input_ids": ids}
    try:
        outputs = [output_tensor(output)[0] for _, output in Sweep(model, [batch], Script()).run()]
    except ModelError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:  # the model's own, of any kind
        raise ModelError(
            f"{model.name}: must run on text alone to be compared, does not ({quoted(error)}). Keep this vocabulary."
        ) from None
    model.weights.release(model.trunk)
    return outputs[0]
