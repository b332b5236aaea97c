"""Write the demo model's card into the package, from what the other scripts recorded and from a judgement of the shipped weights.

python scripts/demo/card.py             # a few minutes on one core
"""

from __future__ import annotations

import json
import lzma
from typing import Any

from build_text import BUILD, PACKAGE
from transformers import AutoTokenizer, LlamaForCausalLM

from train import BATCH, LENGTH, encode, perplexity

PARTS = ("validation", "test")

CARD = """\
# The demo model

A small causal language model of Python source, trained from scratch for modicum, so that `modicum fit demo` needs no download. It is a real
model: it learnt enough that compressing it badly shows. It is of no other use.

Written by `scripts/demo/card.py`; do not edit.

## Architecture

`LlamaForCausalLM` of Transformers: {layers} layers, hidden size {hidden}, feed-forward size {feed}, {heads} heads of {head} with as many keys
and values, context {context}, embedding and output head not tied.

| | |
|---|---|
| parameters | {parameters:,} |
| dtype | {dtype} |
| bytes of `model.safetensors` | {bytes:,} |
| vocabulary | {vocabulary:,} entries, byte-level BPE |

## Data and licence

The library sources and the help topics of Python {python}, under Python's licence (`LICENSE-PSF.txt`). Every top-level module and every help
topic, whole, belongs to one part, drawn by a hash of its name; test files are left out except in the training text. The tokenizer is
trained on the training text alone. The package holds the other three parts.

| part | bytes | SHA-256 |
|---|---:|---|
{texts}

## Training

{steps:,} steps of {batch} windows of {length} tokens, {seen:,} tokens in all, {passes:.2f} passes over the {stream:,} of the training text; AdamW,
bfloat16 autocast on a CPU, seed {seed}, torch {torch}. A perplexity is over all windows of {length} tokens of a text that do not overlap,
each token but a window's first predicted from what stands before it in the window.

| step | tokens | loss of the batch | perplexity on validation | minutes |
|---:|---:|---:|---:|---:|
{curve}

## Quality

The shipped bfloat16 weights, and an interpolated modified Kneser–Ney {order}-gram counted on the same training tokens. Both predict the same
{predicted} tokens from the same windows; the {order}-gram sees up to {before} tokens before each. It has {grams:,} n-grams.

| perplexity | validation | test |
|---|---:|---:|
| this model | {model_validation:.3f} | {model_test:.3f} |
| Kneser–Ney | {ngram_validation:.3f} | {ngram_test:.3f} |

## To make it again

`make demo-model`, with Python {python}, whose library the texts are: the hashes above tell whether they came out the same. It takes over an hour
on two cores. The weights depend on the processor and the number of threads too, and come out alike, not equal.
"""


def measured() -> dict[str, float]:
    """Perplexity of the shipped model on the shipped texts."""
    model = LlamaForCausalLM.from_pretrained(PACKAGE / "model", dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(PACKAGE / "model")
    texts = {part: lzma.decompress((PACKAGE / f"{part}.txt.xz").read_bytes()).decode() for part in PARTS}
    return {part: perplexity(model, encode(tokenizer, text)) for part, text in texts.items()}


def table(rows: list[tuple[Any, ...]]) -> str:
    """Rows of a Markdown table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def card(quality: dict[str, float]) -> str:
    """The card's text, for the model's measured perplexities by part."""
    trained, ngram = _read(BUILD / "curve.json"), _read(BUILD / "kneser_ney.json")
    texts, config = _read(PACKAGE / "texts.json"), _read(PACKAGE / "model" / "config.json")
    last = trained["curve"][-1]
    return CARD.format(
        layers=config["num_hidden_layers"], hidden=config["hidden_size"], feed=config["intermediate_size"],
        heads=config["num_attention_heads"], head=config["head_dim"], context=config["max_position_embeddings"],
        dtype=config["dtype"], vocabulary=config["vocab_size"], **_size(), python=texts["python"],
        texts=table([(part, f"{row['bytes']:,}", f"`{row['sha256']}`") for part, row in texts["parts"].items()]),
        steps=last["step"], batch=BATCH, length=LENGTH, seen=last["tokens"], stream=ngram["train_tokens"],
        passes=last["tokens"] / ngram["train_tokens"], seed=trained["seed"], torch=trained["torch"],
        curve=table([
            (row["step"], f"{row['tokens']:,}", f"{row['train_loss']:.3f}", f"{row['validation_perplexity']:.3f}", f"{row['seconds'] / 60:.1f}")
            for row in trained["curve"]
        ]),
        order=ngram["order"], before=ngram["order"] - 1, grams=sum(ngram["grams"]),
        predicted=" and ".join(f"{ngram[part]['tokens']:,}" for part in PARTS),
        **{f"model_{part}": quality[part] for part in PARTS}, **{f"ngram_{part}": ngram[part]["perplexity"] for part in PARTS},
    )  # fmt: skip


def _size() -> dict[str, int]:
    from modicum.core.tensorfile import TensorFile

    path = PACKAGE / "model" / "model.safetensors"
    with TensorFile(path) as file:
        return {"bytes": path.stat().st_size, "parameters": sum(entry.nbytes // entry.dtype.itemsize for entry in file.entries.values())}


def _read(path: Any) -> Any:
    return json.loads(path.read_text())


def main() -> None:
    """Judge the model and write ``CARD.md``."""
    quality = measured()
    (PACKAGE / "CARD.md").write_text(card(quality), encoding="utf-8")
    print(json.dumps(quality))


if __name__ == "__main__":
    main()
