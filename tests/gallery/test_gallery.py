import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import modicum
from modicum.core.method import registry
from modicum.models.located import DEMO
from modicum.testing import zoo

SCRIPTS = sorted((Path(__file__).parents[2] / "docs" / "gallery").glob("*.py"))


@pytest.fixture
def tiny_demo(monkeypatch, tmp_path):
    """A model of two blocks in place of the demo, whose tokenizer and texts it has; no search, and methods of a script's own go with it."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 1024}
    folder = zoo.random_checkpoint(
        tmp_path / "demo", transformers.LlamaConfig(max_position_embeddings=512, tie_word_embeddings=False, **sizes)
    )
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, folder)
    monkeypatch.setattr("modicum.models.located.DEMO", folder)
    fit, known = modicum.fit, dict(registry())
    monkeypatch.setattr(
        modicum, "fit", lambda *model, **settings: fit(*model, **settings | {"search_time": 0, "tokens": 64, "target": "modicum"})
    )
    yield
    registry().clear()
    registry().update(known)


# The one that adds a method, in the short form; in the long one all, and with the demo itself.
def test_a_method_of_ones_own_runs_from_a_script(tiny_demo, capsys):
    runpy.run_path(str(SCRIPTS[0]), run_name="__main__")
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("  ")[0] for row in rows[1:]] == [
        "nearest bits=2",
        "clipped bits=2",
        "clipped bits=2 reach=1.7",
        "4.5 bpw of clipped bits=2, 4 or 8",
    ]
    assert len({row.split()[-2] for row in rows[1:]}) == 4, "the method's settings change what is made"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", [pytest.param(path, id=path.stem) for path in SCRIPTS])
def test_a_gallery_script_runs_to_its_end_and_has_something_to_show(script, tmp_path):
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_the_gallery_is_numbered_without_gaps():
    assert [int(script.stem[:2]) for script in SCRIPTS] == list(range(1, len(SCRIPTS) + 1))
