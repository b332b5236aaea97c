"""Fine-tune, compress, heal and ship one model in three commands.

`adapt` learns a text of one's own and `apply` puts it into the checkpoint; `fit --heal` compresses that and trains what is left, in the same bytes,
to answer as the tuned model does; what it writes, Transformers loads. Each command is the one that stands in a shell.

python docs/gallery/11_adapt_compress_heal_ship.py
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from modicum.cli.main import main as modicum

# Few short sequences, so that the script takes a minute or two; leave these out for a real model.
FEW = ["--tokens", "64", "--test-samples", "16"]


def run(*words: str) -> str:
    """One command, as a shell would have it."""
    done = CliRunner().invoke(modicum, list(words))
    if done.exit_code:
        raise SystemExit(done.stderr) from done.exception
    return done.stdout


def main() -> None:
    """Three commands, and what each came to."""
    with tempfile.TemporaryDirectory() as place:
        mine, learnt, tuned, small = (str(Path(place) / name) for name in ("mine.txt", "learnt", "tuned", "small"))
        Path(mine).write_text(
            "\n\n".join(f"THE {n} GREY CATS SAT ON {n + 1} GREEN MATS.\nWHO SAT? {n} CATS." for n in range(1500)), encoding="utf-8"
        )
        data = ["--data", mine, *FEW]
        print(run("adapt", "demo", "--method", "lora rank=4", "--steps", "20", "--samples", "64", *data, "--out", learnt, "--quiet"))
        run("apply", "demo", learnt, "--out", tuned)
        run(
            "fit", tuned, "--method", "gptq bits=2 group=32", "--heal", "40", "--heal-batch", "4", "--samples", "64", *data, "--target",
            "transformers", "--allow-broken", "--out", small, "--quiet",
        )  # fmt: skip
        receipt = json.loads((Path(small) / "receipt.json").read_text(encoding="utf-8"))
        sizes, test = receipt["bytes"], receipt["healing"]["test"]
        low, high = test["interval"]
        print(f"{sizes['original']:,} bytes became {sizes['actual']:,}, with and without healing.")
        print(
            f"lost {test['before']:.4f} nats before healing, {test['after']:.4f} after ({test['change']:+.4f}, 95 % {low:+.4f} to {high:+.4f})."
        )
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(small, dtype="auto")
        print(f"ships as {type(model).__name__}; modicum push {Path(small).name} USER/NAME puts it on the hub.")


if __name__ == "__main__":
    main()
