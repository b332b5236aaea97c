"""Tiny random checkpoints of language models whose tokenizer spells: each token is one byte, so that a text of any kind is a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from modicum.testing import zoo

_MARKS = ("<pad>", "<s>", "</s>")


def speller() -> transformers.PreTrainedTokenizerFast:
    """Three marks, then every byte but three that ASCII has no use for; byte-level, without merges, split as GPT-2 splits."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: zoo.VOCABULARY - len(_MARKS)]
    made = Tokenizer(models.BPE(vocab={text: number for number, text in enumerate([*_MARKS, *letters])}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in _MARKS])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def pieces(texts: list[str], merges: int = 100) -> transformers.PreTrainedTokenizerFast:
    """Pieces of ``texts`` as SentencePiece merges them: spaces are letters, what no piece spells is bytes."""
    normal = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    taught = Tokenizer(models.BPE())
    taught.normalizer = normal
    letters = len({letter for text in texts for letter in f"▁{text.replace(' ', '▁')}"})
    taught.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=letters + merges, show_progress=False))
    model = json.loads(taught.to_str())["model"]
    known = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    made = Tokenizer(
        models.BPE(
            {text: number for number, text in enumerate(known)},
            [tuple(pair) for pair in model["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    made.normalizer = normal
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.add_special_tokens([AddedToken(mark, special=True) for mark in ("<unk>", "<s>", "</s>")])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def checkpoint(model: str, directory: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any) -> nn.Module:
    """A model of a class of Transformers, as small as those of the zoo but for ``settings``, written to ``directory`` with its tokenizer."""
    made = zoo.language_model(model, seed, dtype, **settings)
    made.save_pretrained(directory)  # type: ignore[operator]
    speller().save_pretrained(directory)
    return made
