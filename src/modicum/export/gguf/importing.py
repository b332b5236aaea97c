"""A GGUF file made a checkpoint that Transformers loads: its weights as the numbers they stand for, its tokenizer as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modicum.core.errors import ModelError, quoted
from modicum.core.output import require_free, writing
from modicum.export.gguf.architectures import Architecture
from modicum.export.gguf.loading import filled
from modicum.export.gguf.pretokenizers import built_in, rules_of
from modicum.export.gguf.reader import GgufFile
from modicum.export.gguf.settings import config_of, row_of_file
from modicum.export.gguf.vocabulary import CONTROL, GIVEN, UNUSED
from modicum.models.located import IMPORTED
from modicum.models.quiet import hushed


@dataclass(frozen=True)
class Imported:
    """What was imported: where it is, from which file, which types its weights had there, and how many there are."""

    out: Path
    source: Path
    types: tuple[str, ...]
    parameters: int


def import_gguf(source: str | Path, out: str | Path, *, allow_quantized_source: bool = False, overwrite: bool = False) -> Imported:
    """Write what a GGUF file holds as a checkpoint for Transformers.

    Weights that the file holds rounded to blocks become the float32 numbers they stand for, which only ``allow_quantized_source`` lets happen: what
    is compressed again has lost twice. Raises ``SettingError`` and ``ModelError``.
    """
    path, out = Path(source), Path(out)
    require_free(out, [path], overwrite)
    module, tokenizer, file = opened_gguf(path, allow_quantized_source=allow_quantized_source)
    types = tuple(sorted({tensor.type for tensor in file.tensors.values()}))
    with writing(out, [path], overwrite) as made:
        with hushed():
            module.save_pretrained(made)
        tokenizer.save_pretrained(made)
        _write(
            made / IMPORTED, {"format": "modicum-import", "version": 1, "source": str(path), "types": types, "quantized": file.quantized}
        )
    return Imported(out, path, types, sum(value.numel() for value in module.parameters()))


def opened_gguf(path: Path, *, allow_quantized_source: bool = False) -> tuple[Any, Any, GgufFile]:
    """The module and the tokenizer that a file holds. Raises ``ModelError``."""
    file = GgufFile(path)
    row = row_of_file(file)
    require_allowed(file, allow_quantized_source)
    cls, config, tokenizer = described(file, row)
    return filled(file, cls, config, row), tokenizer, file


def require_allowed(file: GgufFile, allowed: bool) -> None:
    """Raise ``ModelError`` for weights that are rounded to blocks, unless that is ``allowed``."""
    if file.quantized and not allowed:
        raise ModelError(
            f"{file.path}: its weights are rounded already ({', '.join(file.quantized)}), and what is made of them loses twice. Start from the "
            "original, or pass --allow-quantized-source."
        )


def described(file: GgufFile, row: Architecture) -> tuple[Any, Any, Any]:
    """The class, the config and the tokenizer of the model in a file. Raises ``ModelError``."""
    import transformers

    tokenizer = _tokenizer(file)
    return getattr(transformers, row.classes[0]), config_of(file, row, _dtype(file)), tokenizer


def _write(path: Path, body: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def _dtype(file: GgufFile) -> torch.dtype:
    """That of matrices where none is rounded; else float32, in which blocks stand for exactly what they do."""
    types = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) > 1}
    for type, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        if types <= {type, "f32"} and type in types:
            return dtype
    return torch.float32


def _tokenizer(file: GgufFile) -> Any:
    """The tokenizer that a head tells. Raises ``ModelError``."""
    said = lambda key: file.values.get(f"tokenizer.ggml.{key}")
    if said("model") == "llama":
        return _pieces(file)
    rules = rules_of(str(said("pre")))
    if said("model") != "gpt2" or rules is None:
        raise ModelError(
            f"{file.path}: its tokenizer must be one that is known here, is {quoted(repr(said('model')))}, {quoted(repr(said('pre')))}. "
            "Start from the original."
        )
    try:
        return _bytes(said, *rules)
    except Exception as error:  # whatever the library makes of texts from elsewhere
        raise ModelError(f"{file.path}: its tokens and merges must make a tokenizer, do not ({quoted(error)}). Fetch it again.") from None


def _bytes(said: Any, rules: tuple[str, ...], whole: bool) -> Any:
    """A byte-level tokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts, kinds = said("tokens"), said("token_type") or [1] * len(said("tokens"))
    known = {text: number for number, (text, kind) in enumerate(zip(texts, kinds, strict=True)) if kind != UNUSED}
    merges = [tuple(pair.split(" ", 1)) for pair in said("merges")]
    made = Tokenizer(models.BPE(vocab=known, merges=merges, ignore_merges=whole))
    steps: list[Any] = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in rules if not built_in(rule) and rule != "punctuation"]
    if "punctuation" in rules:
        steps.insert(0, pre_tokenizers.Punctuation("contiguous"))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=any(map(built_in, rules)))
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken(text, special=kind == CONTROL) for text, kind in zip(texts, kinds) if kind in (CONTROL, GIVEN)])
    marks = {name: said(f"{spelt}_token_id") for name, spelt in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}
    named = {f"{name}_token": texts[number] for name, number in marks.items() if number is not None}
    _begin(made, said, texts, named)
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def _begin(made: Any, said: Any, texts: list[str], named: Mapping[str, str]) -> None:
    """Put marks where the head says that texts have them."""
    from tokenizers import processors

    first = [named["bos_token"]] if said("add_bos_token") and "bos_token" in named else []
    last = [named["eos_token"]] if said("add_eos_token") and "eos_token" in named else []
    if first or last:
        marks = [(text, texts.index(text)) for text in {*first, *last}]
        made.post_processor = processors.TemplateProcessing(single=" ".join([*first, "$A", *last]), special_tokens=marks)


def _pieces(file: GgufFile) -> Any:
    """A tokenizer of pieces, by Transformers' own reader."""
    from transformers import AutoTokenizer

    try:
        with hushed():
            return AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except Exception as error:  # whatever that reader raises
        raise ModelError(
            f"{file.path}: Transformers must read its tokenizer, does not ({quoted(error)}). Start from the original."
        ) from None
