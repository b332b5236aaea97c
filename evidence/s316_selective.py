"""S316, selective differentiation: frozen convolutions and batch norms keep no input, on a convolutional net of which the first layer is trained."""

from __future__ import annotations

import functools
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch

from common import Claim, Setting, result, show
from kept import Kept
from modicum.train.lean import lean
from scenes.digits import Conv, pictures
from scenes.training import classes

CLAIM = Claim(
    id="S316",
    system="Selective-differentiation memory-saving layers",
    claim="Swap Linear, Conv and Norm for variants that save inputs only if their weight requires grad; on a partly frozen model, gradients match "
    "exactly while bytes counted by saved_tensors_hooks drop and runtime is unchanged.",
    metric="share of the bytes kept for the backward pass that lean layers save, first convolution trained, the rest frozen",
    margin=2.0,
    setting=Setting(method="lean layers", baselines=("torch's layers",), test_samples=0),
)
WIDTH, BATCH, TURNS, SLOWER = 32, 128, 15, 1.05
DATA = f"A convolutional net of {WIDTH} to {2 * WIDTH} channels, batch norms in evaluation, on {BATCH} digits; only its first convolution is trained"


def once(seed: int) -> dict[str, Any]:
    """Bytes, gradients and seconds of a step in both ways, in turns."""
    torch.manual_seed(seed)
    model, (x, y) = Conv(WIDTH), pictures("train", seed=seed)
    model.eval().requires_grad_(False)
    first = model.body[0][0].weight.requires_grad_()
    chosen = torch.randperm(len(x))[:BATCH]
    seconds, bytes_, gradients = {True: [], False: []}, {}, {}
    for turn in range(2 * TURNS):
        saving = turn % 2 == 0
        with lean(model) if saving else nullcontext():
            held: dict[int, int] = {}
            hooks = (
                torch.autograd.graph.saved_tensors_hooks(functools.partial(_held, held), lambda tensor: tensor)
                if turn < 2
                else nullcontext()
            )
            begun = time.process_time()
            with hooks:
                loss = classes(model, (x[chosen], y[chosen]))
            (gradients[saving],) = torch.autograd.grad(loss, first)
            seconds[saving].append(time.process_time() - begun)
        if turn < 2:
            own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers(), x, y)}
            bytes_[saving] = sum(size for place, size in held.items() if place not in own)
    ratios = [a / b for a, b in zip(seconds[True][1:], seconds[False][1:])]
    return {"bytes": bytes_[True], "torch's": bytes_[False], "equal": torch.equal(*gradients.values()), "time": statistics.median(ratios)}


def _held(held: dict[int, int], tensor: torch.Tensor) -> torch.Tensor:
    held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return tensor


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    found = [kept(f"seed {seed}", functools.partial(once, seed)) for seed in setting.seeds]
    times = [each["time"] for each in found]
    rows = [
        {"option": option, "bytes kept for the backward pass": [each[name] for each in found], "time of a step, relative": relative}
        for option, name, relative in ((setting.method, "bytes", times), (setting.baselines[0], "torch's", [1.0] * len(found)))
    ]
    conditions = {
        "gradients equal to the bit": all(each["equal"] for each in found),
        f"a step takes at most {SLOWER:g} of the time": statistics.median(times) <= SLOWER,
    }
    show(result(CLAIM, kept, rows, [1 - each["bytes"] / each["torch's"] for each in found], {}, conditions, DATA))


if __name__ == "__main__":
    main()
