"""Which parameters a forward really multiplies: a module's own parameter may be a weight, or a table that is added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Torch's own modules whose output is the product of their input and their weight, and the methods that make it so.
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PRODUCT = ("forward", "_conv_forward")

# Products by name, and those whose second argument alone is a weight: what they are given first is an input, even if it is a parameter.
_EITHER = {
    "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv", "baddbmm", "addbmm", "einsum", "tensordot", "linalg_multi_dot",
    "chain_matmul", "inner",
}  # fmt: skip
_SECOND = {"linear", "embedding", "embedding_bag", "bilinear"} | {
    f"conv{way}{axes}d" for way in ("", "_transpose") for axes in (1, 2, 3)
}  # fmt: skip

# Functions that ask of a tensor what it is, not what it holds; properties are "__get__".
_ABOUT = {
    "__get__", "size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "is_contiguous", "data_ptr", "untyped_storage",
    "storage", "__len__", "is_floating_point", "is_complex", "get_device", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "type_as", "requires_grad_",
}  # fmt: skip


class Products(TorchFunctionMode):
    """Reports by name each parameter that a product takes as it is, or in a view; ``held()`` gives the names by their memory."""

    def __init__(self, held: Callable[[], Mapping[int, str]], report: Callable[[str], None]):
        super().__init__()
        self.held, self.report = held, report

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").partition(".")[0]  # an exported graph's has its overload behind it
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


class Loans(TorchFunctionMode):
    """Reports by name each weight that is read from outside its layer's forward, once something is computed with its values."""

    def __init__(self, report: Callable[[str], None]):
        super().__init__()
        self.report = report
        self._lent: dict[str, range] = {}  # addresses

    def lend(self, name: str, weight: Any) -> None:
        """A weight was read from outside."""
        if start := _address(weight):
            self._lent[name] = range(start, start + weight.nbytes)

    def end(self) -> None:
        """Forget what was lent: other weights will lie there."""
        self._lent.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if self._lent and name not in _ABOUT:
            for address in map(_address, tree_leaves(args[:1] if name == "to" else (args, kwargs))):
                for lent in [lent for lent, there in self._lent.items() if address in there]:
                    self.report(lent)
        return func(*args, **kwargs)


def _address(value: Any) -> int:
    """Where a tensor's values begin; zero where they lie nowhere."""
    try:
        return value.data_ptr() if isinstance(value, torch.Tensor) and value.device.type != "meta" else 0
    except RuntimeError:  # tensors without a storage
        return 0


def is_product(module: nn.Module, inputs: torch.Tensor | None, output: Any) -> bool:
    """Whether a module with a forward of its own gives what torch's does, so that its input is what its weight multiplies."""
    plain = next((base for base in type(module).__mro__ if base in _PLAIN), None)
    if plain is None or inputs is None or all(getattr(type(module), name, None) is getattr(plain, name, None) for name in _PRODUCT):
        return True
    try:
        expected = plain.forward(module, inputs)  # type: ignore[arg-type]
    except Exception:  # whatever torch raises where only the module's own forward knows what to do
        return False
    same = isinstance(output, torch.Tensor) and output.shape == expected.shape
    return same and torch.allclose(output.float(), expected.float(), rtol=1e-3, atol=1e-5)
