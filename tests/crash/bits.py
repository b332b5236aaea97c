"""Prints, as JSON, hashes of what this process makes: of one weight and a tiny model, or, given a model's folder and one to write into, of that.

Threads and the seed of Python's hashes are what the environment says.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch

import modicum
from modicum.core.option import Option
from modicum.core.unit import Site, Stats, Unit
from modicum.drop.ziplm import Ziplm
from modicum.forms import Dense
from modicum.testing import zoo

# One option of each family, on a weight that is wide enough for threads to share the work.
OPTIONS = (
    "nearest bits=3",
    "hqq bits=3",
    "gptq bits=3",
    "gptq bits=3 order=none group=64",
    "gptq bits=3 | eora rank=8",
    "sparsegpt keep=0.5",
    "sparsegpt keep=0.5 pattern=2:4",
    "wanda keep=0.5",
    "svd keep=0.5",
    "fp8",
)
# Which dtype is faster may hang on the number of threads: it is said.
SIZES = (
    "--compute",
    "bfloat16",
    "--samples",
    "4",
    "--tokens",
    "64",
    "--test-samples",
    "2",
    "--micro-batch",
    "4",
    "--gradient-samples",
    "2",
    "--target",
    "modicum",
)
MENU = "int2,int4,int8,gptq bits=3 | eora rank=2,svd keep=0.5,sparsegpt keep=0.5,ziplm keep=0.5,replaceme count=1"


def forms(rows=384, columns=512, tokens=2048):
    """What each option makes of one weight."""
    chance = torch.Generator().manual_seed(0)
    inputs = torch.randn(tokens, columns // 4, generator=chance) @ torch.randn(columns // 4, columns, generator=chance)
    inputs += 0.2 * torch.randn(tokens, columns, generator=chance)
    weight = torch.randn(rows, columns, generator=chance)
    unit = Unit("unit", "unit", "unit", "linear", weight.shape, weight.shape, weight.dtype)
    for text in OPTIONS:
        option = Option.parse(text)
        stats = Stats(count=tokens, reference=weight, square=inputs.square().sum(0), covariance=inputs.T @ inputs)
        made = option.apply(Site("unit", "unit", (unit,)), {"unit": stats}, {"unit": Dense(weight)}).forms["unit"]
        yield text, digest(*(part.contiguous().view(torch.uint8).numpy().tobytes() for part in made.tensors().values()))

    cutter, few = Ziplm(keep=0.5), list(range(0, columns, 3))
    yield "ziplm", cutter.order(weight, inputs.T @ inputs, [range(low, low + 32) for low in range(0, columns, 32)])
    yield "ziplm refit", digest(cutter.refit(weight, inputs.T @ inputs, torch.tensor(few)).contiguous().numpy().tobytes())


def tiny():
    """The files of two tiny models, chosen for a budget: one with a search."""
    for (model, batches), seconds in ((zoo.tied_twin(), 0), (zoo.build("mlp"), 60)):
        with tempfile.TemporaryDirectory() as folder:
            out = modicum.fit(
                model, "9bpw", data=batches, out=Path(folder) / "out", menu="nearest bits=4,gptq bits=8", search_time=seconds
            ).out
            yield from ((f"{seconds} {path.name}", digest(path.read_bytes())) for path in sorted(out.glob("*.safetensors")))
            yield f"{seconds} plan", (out / "plan.json").read_text()


def files(model, out):
    """What commands write; what receipts and findings tell, beside times and threads, stands under names with a colon."""
    common = (str(model), "--data", str(model.with_suffix(".txt")), *SIZES, "--menu", MENU)
    command("measure", *common, "--out", str(out / "measured"))
    command("fit", *common, "--bpw", "5", "--search-time", "0", "--out", str(out / "budget"))
    command("fit", str(model), "--from", str(out / "measured"), "--bpw", "4", "--out", str(out / "from"))
    command("fit", *common, "--method", "ziplm keep=0.5 | gptq bits=3 | eora rank=4", "--out", str(out / "method"))
    for name in ("budget", "from", "method"):
        for file in ("model.safetensors", "plan.json", "modicum.json"):
            yield f"{name}/{file}", digest((out / name / file).read_bytes())
        receipt = json.loads((out / name / "receipt.json").read_text())
        receipt["versions"].pop("threads")
        receipt["search"].pop("seconds", None)
        yield from ((f"{name}/receipt.json: {key}", value) for key, value in receipt.items() if key != "stages")
    for key, value in json.loads((out / "measured" / "findings.json").read_text()).items():
        yield f"measured/findings.json: {key}", value


def command(*words):
    from modicum.cli.main import main

    main(words, prog_name="modicum", standalone_mode=False)


def digest(*parts):
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


if __name__ == "__main__":
    said, sys.stdout = sys.stdout, sys.stderr
    json.dump(dict(files(*map(Path, sys.argv[1:])) if sys.argv[1:] else {**dict(forms()), **dict(tiny())}), said)
