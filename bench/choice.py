"""How soon a choice is told from a measurement: processor seconds beside imports, each in a process of its own.

``python -m bench.choice MEASURED``, where ``modicum measure demo --out MEASURED`` wrote. The same findings told of 22 blocks stand for the units of
1.1 billion parameters: what chooses meets their number and never a weight.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers

from bench.common import show
from modicum.measure import measured
from modicum.models.located import DEMO
from modicum.models.open import open_model
from modicum.testing import random_checkpoint

BLOCKS, OF_DEMO, TIMES = 22, 8, 3
_TOLD = """
import sys, time
import modicum, modicum.fit, modicum.receipt, transformers.models.llama.modeling_llama
from modicum.fit.choosing import Choosing
begun = time.process_time()

def told(self, picks, events):
    print(time.process_time() - begun)
    sys.exit()

Choosing._keep = told
modicum.fit(measured=sys.argv[1], bpw=4, target="modicum", search_time=0)
"""


def main(directory: str) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, place in (("the demo", Path(directory)), (f"{BLOCKS} of its blocks", _grown(Path(directory), Path(folder)))):
            units = len(json.loads((place / "findings.json").read_text(encoding="utf-8"))["units"])
            seconds = [
                float(subprocess.run([sys.executable, "-c", _TOLD, place], check=True, capture_output=True, text=True).stdout)
                for _ in range(TIMES)
            ]
            rows.append((name, units, *(f"{each:.2f}" for each in sorted(seconds))))
    head = ("measured", "units", "least of three", "middle", "most")
    show("Choice: processor seconds until fit --from tells what it chose", head, rows, "`python -m bench.choice MEASURED`, beside imports.")


def _grown(source: Path, folder: Path) -> Path:
    """The measurement as one of a model with more blocks, random weights of the demo's shapes."""
    config = transformers.AutoConfig.from_pretrained(DEMO)
    config.num_hidden_layers = BLOCKS
    model, made = random_checkpoint(folder / "model", config), folder / "measured"
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, model)
    shutil.copytree(source, made)
    read = lambda name: json.loads((made / name).read_text(encoding="utf-8"))
    findings, meta, opened = read("findings.json"), read("measurement.json"), open_model(str(model))
    for part in ("units", "cuts", "facts", "energy"):
        findings[part] = dict(_told(findings[part].items()))
    (made / "findings.json").write_text(json.dumps(findings | {"plain": {}}), encoding="utf-8")
    meta["cuts"], meta["felt"] = _told(meta["cuts"]), []
    meta["model"] |= {"source": str(model), "hash": opened.hash(), "parameters": opened.parameters, "bytes": opened.dense_bytes}
    meta["hash"] = measured._hash(made, meta)
    (made / "measurement.json").write_text(json.dumps(meta), encoding="utf-8")
    return made


def _told(items: Any) -> list[Any]:
    """Each of some values that name a block, of every block that stands in its place; the others once."""
    found = []
    for item in items:
        text = json.dumps(item)
        block = re.search(r"layers\.(\d+)\.", text)
        places = range(int(block[1]), BLOCKS, OF_DEMO) if block else ()
        found += [json.loads(text.replace(block[0], f"layers.{place}.")) for place in places] if block else [item]
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
