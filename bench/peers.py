"""Peers in the table of methods (`bench.methods`): what llm-compressor and auto-round make of the demo in their own environments, judged as ours.

llm-compressor runs where bench/peer/setup.sh has been run; auto-round's rows are those that `bench.learned` has made.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import modicum
from bench.learned import HOME
from bench.side_by_side import COMMON, PEER, WORK, run_peer
from modicum.data.splits import from_text
from modicum.forms import Masked
from modicum.models.located import DEMO
from modicum.models.open import open_model

# By the words of a row: a recipe of bench/peer/llmcompressor_run.py, filled in by bits or sparsity.
RECIPES: dict[str, dict[str, Any]] = {
    "GPTQ": {"method": "gptq", "symmetric": False, "observer": "mse"},
    "AWQ": {"method": "awq", "symmetric": False, "observer": "mse"},
    "nearest": {"method": "rtn", "symmetric": False, "observer": "mse"},
    "SparseGPT": {"method": "sparsegpt"},
    "Wanda": {"method": "wanda"},
}


def names(group: str) -> list[str]:
    """Rows of peers that can be had at ``group``: ``3 bits``, ``60 % sparse``, ``2:4 sparse``."""
    if "cut" in group:
        return []
    if "sparse" in group:
        return [f"llm-compressor {tool}, {group}" for tool in ("SparseGPT", "Wanda")]
    bits = group.split()[0]
    learned = sorted(HOME.glob(f"autoround-demo-{bits}-*-all/run.json"), key=lambda file: int(file.parent.name.split("-")[3]))
    found = [f"auto-round {file.parent.name.split('-')[3]} updates, {group}" for file in learned]
    return [f"llm-compressor {tool}, {group}" for tool in ("GPTQ", "AWQ", "nearest")] + found


def measured(name: str, windows: tuple[int, int, int]) -> dict[str, Any]:
    """What the row ``name`` loses, and of pruned weights the ``made_bytes`` that they take with one bit for each entry."""
    tool, group = re.fullmatch(r"(.*), (.*)", name).groups()  # type: ignore[union-attr]
    if tool.startswith("auto-round"):
        told = json.loads((HOME / f"autoround-demo-{group.split()[0]}-{tool.split()[1]}-all" / "run.json").read_text())
        return {"quality": told["quality"]}
    samples, tokens, tests = windows
    recipe = {**COMMON, "dtype": "bfloat16", **RECIPES[tool.split()[-1]], **_level(group)}
    out, rows = WORK / "methods", WORK / "methods.safetensors"
    WORK.mkdir(parents=True, exist_ok=True)
    data = from_text(None, open_model("demo").tokenizer, samples=samples, tokens=tokens)
    save_file({"input_ids": torch.cat([batch["input_ids"] for batch in data.calibration])}, rows)  # type: ignore[call-overload,index]
    run_peer(DEMO, rows, recipe, out)
    sparse = {"made_bytes": sum(Masked.of(weight, weight != 0).nbytes for weight in linears(out))} if "sparse" in group else {}
    return {"quality": modicum.evaluate(out, reference="demo", samples=tests, tokens=tokens)["quality"], **sparse}


def available() -> bool:
    """Whether llm-compressor's environment is there."""
    return PEER.exists()


def linears(folder: Path) -> list[torch.Tensor]:
    """Weights of the linears of the demo's blocks in a checkpoint like it."""
    return [tensor for name, tensor in load_file(folder / "model.safetensors").items() if re.search(r"layers\..*_proj\.weight$", name)]


def _level(group: str) -> dict[str, Any]:
    if group == "2:4 sparse":
        return {"sparsity": 0.5, "pattern": "2:4"}
    level = int(group.split()[0])
    return {"sparsity": level / 100} if "sparse" in group else {"bits": level}
