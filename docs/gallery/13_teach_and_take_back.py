"""Teach the demo facts that nobody could know, see them in greedy decoding, count what survives 3 bits, and take them back.

The facts are base classes of classes with invented names. An edit is a delta: applied, judged as any checkpoint, and reverted to the byte. How many
facts survive compression is no promise of any editor, so it is counted; what was lost is taught again over the codes, which stay as they are.

python docs/gallery/13_teach_and_take_back.py [FACTS]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import modicum
from modicum.delta.applying import apply, revert
from modicum.edit.facts import Fact
from modicum.fit import over
from modicum.models.located import DEMO
from modicum.testing.facts import invented


def main() -> None:
    """Teach, decode, compress, count, revert."""
    facts = invented(int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else 100)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = modicum.edit("demo", facts, folder / "delta", samples=32, test_samples=16)
        taught = apply("demo", [made.delta], folder / "taught").out
        tell("before", DEMO, facts)
        tell("taught", taught, facts)
        small = modicum.fit(taught, method="gptq bits=3 group=32", target="modicum", out=folder / "small", samples=16, tokens=128, test_samples=8,
                            allow_broken=True)  # fmt: skip
        print(f"in 3 bits: {known(small.model, facts)} of {len(facts)} facts")
        again_taught(folder, facts)
        again = revert(taught, folder / "again")
        tell("reverted", again, facts)
        print("weights as they were:", (again / "model.safetensors").read_bytes() == (DEMO / "model.safetensors").read_bytes())


def again_taught(folder: Path, facts: Sequence[Fact]) -> None:
    """Teach the 3-bit model what it lost, over its codes, and take that back too."""
    lost = modicum.edit(folder / "small", facts, folder / "delta over codes", samples=32, test_samples=16)
    over.apply(folder / "small", [lost.delta], folder / "small taught")
    print(f"taught in 3 bits: {known(modicum.load(folder / 'small taught'), facts)} of {len(facts)} facts")
    over.revert(folder / "small taught", folder / "small again")
    same = all((folder / "small again" / path.name).read_bytes() == path.read_bytes() for path in (folder / "small").glob("*.safetensors"))
    print("codes as they were:", same)


def tell(what: str, directory: Path, facts: Sequence[Fact]) -> None:
    """How many facts a checkpoint knows."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    print(f"{what}: {known(model, facts)} of {len(facts)} facts")


def known(model: torch.nn.Module, facts: Sequence[Fact]) -> int:
    """Facts whose target greedy decoding gives, token by token."""
    tokenizer, found = AutoTokenizer.from_pretrained(DEMO), 0
    for fact in facts:
        ids, wanted = tokenizer(fact.prompt)["input_ids"], tokenizer(fact.target)["input_ids"]
        with torch.no_grad():
            for _ in wanted:
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        found += ids[-len(wanted) :] == wanted
    return found


if __name__ == "__main__":
    main()
