"""What is not imported before it is needed."""

import json
import subprocess
import sys

import pytest

from modicum.cli.main import main

HEAVY = {"torch", "transformers", "numpy", "scipy", "rich", "matplotlib", "jinja2", "safetensors", "filelock", "psutil"}


def heavy_after(code):
    """Which of the heavy modules a fresh interpreter has imported after ``code``."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_alone_imports_nothing_heavy():
    assert not heavy_after("import modicum")


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in sorted(main.commands))], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    assert not heavy_after(f"from modicum.cli.main import main\nmain({words}, standalone_mode=False)")


def test_what_is_heavy_shows():
    assert "torch" in heavy_after("import modicum\nmodicum.load")
