#!/usr/bin/env bash
# torch 2.13.0: a TorchFunctionMode that counts products sees those of nn.Linear. Of nn.MultiheadAttention and nn.TransformerEncoderLayer it sees
# neither the packed projection nor the output's: the functional form hands itself over whole, and runs on with the mode switched off. Two thirds of the
# encoder layer's weights below look as if nothing multiplied them; a dispatch mode sees all products.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy
"$work/env/bin/python" -W ignore - <<'PY'
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WIDTH, FEED = 16, 16


class Functions(TorchFunctionMode):
    """Names of the functions called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(getattr(function, "__name__", str(function)))
        return function(*args, **(kwargs or {}))


class Products(TorchDispatchMode):
    """How many matrix products with a weight are computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function).startswith(("aten.addmm", "aten.mm", "aten.linear"))
        return function(*args, **(kwargs or {}))


def seen(layer, *inputs):
    """Calls of linear that the one mode sees, products with a weight that the other does, and what else the first sees."""
    with Functions() as functions:
        layer(*inputs)
    with Products() as products:
        layer(*inputs)
    return functions.seen.count("linear"), products.count, sorted({name for name in functions.seen if "attention" in name})


torch.manual_seed(0)
x = torch.randn(2, 5, WIDTH)
found = {
    "two linear layers": seen(nn.Sequential(nn.Linear(WIDTH, FEED), nn.Linear(FEED, WIDTH)), x),
    "attention": seen(nn.MultiheadAttention(WIDTH, 2, batch_first=True), x, x, x),
    "encoder layer": seen(nn.TransformerEncoderLayer(WIDTH, 2, FEED, batch_first=True), x),
}
print("torch", torch.__version__)
for name, (linear, products, others) in found.items():
    print(f"{name}: {linear} calls of linear seen by the function mode, {products} products by the dispatch mode; also seen: {others}")
assert found["two linear layers"][:2] == (2, 2)
assert found["attention"][0] == 0 and found["attention"][1] >= 2, "the function mode now sees the projections of an attention"
assert found["encoder layer"][0] == 2 and found["encoder layer"][1] >= 4
assert "multi_head_attention_forward" in found["attention"][2]
PY
