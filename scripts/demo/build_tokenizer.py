"""Train the demo's tokenizer: byte-level BPE of 1024 entries with GPT-2's pre-tokenizer, on the frozen training text.

python scripts/demo/build_tokenizer.py
"""

from __future__ import annotations

from build_text import BUILD, PACKAGE, SEPARATOR
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024


def main() -> None:
    """Train on the training text alone and save in the layout of Transformers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (BUILD / "train.txt").read_text().split(SEPARATOR)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR, model_max_length=512, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(PACKAGE / "model")
    sample = texts[0][:20000]
    print("vocabulary", len(fast), "bytes per token", len(sample.encode()) / len(fast(sample)["input_ids"]))


if __name__ == "__main__":
    main()
