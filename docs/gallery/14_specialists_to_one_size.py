"""Three specialists of one base become one model, weights chosen on validation data, which is then fitted to a size.

Each specialist learns a text of its own. The merge gives all three to one model of the same size; its loss on each text says what of every
specialist is left, and `fit` brings it to four bits a weight.

python docs/gallery/14_specialists_to_one_size.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from modicum.cli.main import main as modicum

# Few short sequences, so that the script takes a minute or two; leave these out for real models.
FEW = ["--tokens", "64", "--test-samples", "8"]
TEXTS = {
    "cats": "THE {n} GREY CATS SAT ON {m} GREEN MATS.\nWHO SAT? {n} CATS.",
    "sums": "sum({n}, {m}) == {s}  # not {t}\nassert sum({m}, {n}) == {s}",
    "logs": "[{n:05d}] worker-{m} finished job {s} in {t} ms; next job {n}",
}


def run(*words: str) -> None:
    """One command, as a shell would have it."""
    done = CliRunner().invoke(modicum, list(words))
    if done.exit_code:
        raise SystemExit(done.stderr) from done.exception


def text(name: str, first: int, count: int) -> str:
    """Lines of one kind."""
    numbers = range(first, first + count)
    return "\n\n".join(TEXTS[name].format(n=n, m=n * 7 % 97, s=n + n * 7 % 97, t=n * 13 % 991) for n in numbers)


@torch.no_grad()
def losses(model: str) -> str:
    """Loss per token on each text, of lines that nobody was trained on."""
    module, tokenizer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(model)
    found = []
    for name in TEXTS:
        ids = tokenizer(text(name, 5000, 40), return_tensors="pt")["input_ids"][:, :256]
        found.append(f"{name} {float(module(input_ids=ids, labels=ids).loss):.2f}")
    return ", ".join(found)


def main() -> None:
    """Adapt three times, merge, fit."""
    with tempfile.TemporaryDirectory() as place:
        folder, every = Path(place), Path(place) / "every.txt"
        every.write_text("\n\n".join(text(name, 2000, 300) for name in TEXTS), encoding="utf-8")
        learnt = []
        for name in TEXTS:
            (folder / f"{name}.txt").write_text(text(name, 0, 1500), encoding="utf-8")
            out = str(folder / name)
            run("adapt", "demo", "--method", "lora rank=8", "--steps", "20", "--samples", "64", "--data", str(folder / f"{name}.txt"), *FEW,
                "--out", out, "--quiet")  # fmt: skip
            learnt.append(out)
        merged, small = str(folder / "merged"), str(folder / "small")
        run("merge", "demo", *learnt, "--method", "ties density=0.5", "--evaluate", "evolution", "--trials", "6", "--data", str(every),
            "--samples", "8", "--tokens", "64", "--out", merged, "--quiet")  # fmt: skip
        receipt = json.loads((Path(merged) / "receipt.json").read_text(encoding="utf-8"))
        chosen = ", ".join(f"{weight:.2f}" for weight in receipt["evaluated"]["weights"])
        print(f"weights {chosen} of {len(receipt['evaluated']['tried'])} tried, by {receipt['method']}")
        perplexity = receipt["verified"]["perplexity"]
        print(f"perplexity on held-out lines of all three: {perplexity['base']:.1f} for the base, {perplexity['result']:.1f} merged")
        print("merged, loss on", losses(merged))
        run("fit", merged, "--method", "gptq bits=4 group=32", "--target", "transformers", "--data", str(every), "--samples", "16", *FEW,
            "--allow-broken", "--out", small, "--quiet")  # fmt: skip
        sizes = json.loads((Path(small) / "receipt.json").read_text(encoding="utf-8"))["bytes"]
        print(f"{sizes['original']:,} bytes became {sizes['actual']:,}")
        print("fitted, loss on", losses(small))


if __name__ == "__main__":
    main()
