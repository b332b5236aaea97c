import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "docs" / "gallery").glob("*.py"))


@pytest.mark.timeout(600)
# The first, which adds a method, in the short form; all in the long one.
@pytest.mark.parametrize(
    "script", [pytest.param(path, marks=[pytest.mark.slow] if place else [], id=path.stem) for place, path in enumerate(SCRIPTS)]
)
def test_a_gallery_script_runs_to_its_end_and_has_something_to_show(script, tmp_path):
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_the_gallery_is_numbered_without_gaps():
    assert [int(script.stem[:2]) for script in SCRIPTS] == list(range(1, len(SCRIPTS) + 1))
