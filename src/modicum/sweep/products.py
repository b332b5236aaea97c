"""Which parameters a forward really multiplies: a module's own parameter may be a weight, or a table that is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Products by name, and those whose second argument alone is a weight: what they are given first is an input, even if it is a parameter.
_EITHER = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "baddbmm", "addbmm", "einsum", "tensordot"}
_SECOND = {"linear", "embedding", "embedding_bag", "bilinear"} | {
    f"conv{way}{axes}d" for way in ("", "_transpose") for axes in (1, 2, 3)
}  # fmt: skip


class Products(TorchFunctionMode):
    """Reports by name each parameter that a product takes as it is, or in a view; ``held()`` gives the names by their memory."""

    def __init__(self, held: Callable[[], Mapping[int, str]], report: Callable[[str], None]):
        super().__init__()
        self.held, self.report = held, report

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _EITHER:
            self._look((args, kwargs))
        elif name in _SECOND:
            self._look(kwargs.get("weight", args[2 if name == "bilinear" else 1] if len(args) > 1 else None))
        return func(*args, **kwargs)

    def _look(self, given: Any) -> None:
        held = self.held()
        for tensor in tree_leaves(given) if held else ():
            if isinstance(tensor, torch.Tensor) and (found := held.get(tensor.untyped_storage().data_ptr())) is not None:
                self.report(found)
