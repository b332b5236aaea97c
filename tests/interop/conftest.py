"""The models of this folder come out of registry packages: where one is absent its tests are skipped, with the reason."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import models  # noqa: E402


@pytest.fixture(scope="session")
def package():
    """Imports a package, or skips the test that wants it and says how to get it."""

    def wanted(name):
        try:
            return models.imported(name)
        except ImportError as error:
            pytest.skip(f"{name} cannot be imported here ({error}): run make interop")

    return wanted
