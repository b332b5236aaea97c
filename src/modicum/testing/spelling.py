"""Tiny random checkpoints of language models whose tokenizer spells: each token is one byte, so that a text of any kind is a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
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


def checkpoint(model: str, directory: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any) -> nn.Module:
    """A model of a class of Transformers, as small as those of the zoo but for ``settings``, written to ``directory`` with its tokenizer."""
    made = zoo.language_model(model, seed, dtype, **settings)
    made.save_pretrained(directory)  # type: ignore[operator]
    speller().save_pretrained(directory)
    return made
