"""Ship the fewest bytes, and load them in Transformers: weights in codes near their entropy, written out as the very same whole numbers.

The file that is sent is our container, whose codes `modicum.load` decodes. Whoever wants a directory for Transformers writes one from it: nothing is
rounded again, so both answer alike.

python docs/gallery/07_ship_codes.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import modicum

# Few sequences, so that the script takes seconds; leave these out for a real model.
FEW = {"samples": 8, "test_samples": 4, "tokens": 128}


def main() -> None:
    """Code the demo's layers at three bits per weight, expand the result, and hold the logits of both against each other."""
    with tempfile.TemporaryDirectory() as folder:
        coded, expanded = Path(folder) / "coded", Path(folder) / "expanded"
        made = modicum.fit("demo", method="watersic rate=3", target="modicum", out=coded, **FEW).receipt
        # --dense: Transformers reads no embedding in whole numbers, so that one is written as the values it has.
        run("modicum", "export", coded, "--target", "transformers", "--out", expanded, "--dense", "--quiet")
        for directory in (coded, expanded):
            print(f"{directory.name:<9} {sum(file.stat().st_size for file in directory.glob('*.safetensors')):>9,} bytes")
        given = AutoTokenizer.from_pretrained(expanded)("def mean(values):", return_tensors="pt")
        with torch.no_grad():
            logits = [model(**given).logits for model in (modicum.load(coded), AutoModelForCausalLM.from_pretrained(expanded))]
        print(f"KL to the original {made['quality']['mean']:.4f}; logits of both are the same bits: {torch.equal(*logits)}")


def run(*words: object) -> None:
    """Run a command as from a shell, and show it without what it prints."""
    print("$", *words)
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
