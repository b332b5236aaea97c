"""Tells Transformers how a container is opened, once Transformers itself is imported: ``import modicum`` alone stays light."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The module of Transformers that knows all readers of quantized checkpoints; it is imported with the first model class.
_REGISTRY = "transformers.quantizers.auto"


def register_when_imported() -> None:
    """Make ``from_pretrained`` open containers: now where Transformers' registry is imported already, else as soon as it is."""
    if _REGISTRY in sys.modules:
        _register(sys.modules[_REGISTRY])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for one module to be imported, lets the usual finders find it, and steps aside for good."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """The module's own loader, and the registration after it."""

    def __init__(self, own: Any):
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.own
        self.own.exec_module(module)
        _register(module)


def _register(registry: Any) -> None:
    if not hasattr(registry, "register_quantizer"):  # half imported: whoever imports it now has not come to an end
        return
    from modicum.quantizer import NAME, ContainerConfig, ContainerQuantizer

    registry.AUTO_QUANTIZATION_CONFIG_MAPPING[NAME] = ContainerConfig
    registry.AUTO_QUANTIZER_MAPPING[NAME] = ContainerQuantizer
