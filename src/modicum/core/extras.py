"""Packages that only some settings need, which come with an extra."""

from __future__ import annotations

import importlib.util

from modicum.core.errors import SettingError


def require_package(who: str, package: str, extra: str) -> None:
    """Raise ``SettingError`` where a package is not installed that ``who`` asks for; it is not imported."""
    if importlib.util.find_spec(package) is None:
        raise SettingError(f"{who}: the package {package} must be installed, is not. Run: pip install 'modicum[{extra}]'.")
