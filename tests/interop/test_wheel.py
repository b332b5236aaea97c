"""The wheel, in an environment that has nothing else, fits the demo."""

import json
import subprocess
import sys
from pathlib import Path

import torch

HOME = Path(__file__).resolve().parents[2]


def test_the_wheel_fits_the_demo_where_nothing_else_is(tmp_path):
    run = lambda *words: subprocess.run([*map(str, words)], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, HOME)
    (wheel,) = tmp_path.glob("modicum-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", f"torch=={torch.__version__.partition('+')[0]}")
    run(python, "-m", "pip", "install", wheel)
    few = ("--samples", 4, "--tokens", 128, "--test-samples", 4, "--search-time", 0)
    told = json.loads(run(python, "-m", "modicum", "fit", "demo", "--bpw", 4, "--out", tmp_path / "out", *few, "--json"))
    assert told["bytes"]["actual"] == (tmp_path / "out" / "model.safetensors").stat().st_size <= told["bytes"]["allowed"]
    assert (tmp_path / "out" / "report.html").is_file() and "Usage:" in run(tmp_path / "env" / "bin" / "modicum", "--help")
