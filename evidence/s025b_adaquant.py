"""S025, AdaQuant whole: weights and inputs of a convolutional net in four bits, one scale a channel, one an input.

Three nets of three convolutions with batch norms, trained on Scikit-learn's digits by three seeds. Layers are optimised one by one on 160 of 256
unlabelled pictures, then batch norms are tuned. Inputs of every layer are rounded to four bits by hooks, for all options alike, under scales found
on the same pictures by least squared error. The integer program over bits is a row of its own (S025).
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from torch import nn

from common import Claim, Setting, result, show
from kept import Kept
from scenes.digits import classifier, logits, opened, pictures

CLAIM = Claim(
    id="S025B",
    system="AdaQuant",
    claim="Optimize each layer's weights and step sizes on a small unlabeled calibration set for output MSE, re-tune BN statistics; W4A4 must beat "
    "round-to-nearest clearly.",
    metric="mean KL of the test pictures' classes to the original's, of nearest rounding minus AdaQuant's, both with inputs in four bits",
    margin=2.0,
    setting=Setting(
        method="adaquant bits=4 group=0, retuned",
        baselines=("nearest bits=4 group=0",),
        beside=("adaquant bits=4 group=0", "nearest bits=4 group=0, retuned", "gptq bits=4 group=0, retuned", "inputs alone"),
        samples=256,
        tokens=1,
        test_samples=497,
    ),
)
LEVELS = 15


def fitted(text: str, seed: int) -> dict[str, Any]:
    """Quality and bytes of one option on one net."""
    import modicum

    net, (x, _), (test, labels) = opened(classifier(net="conv", seed=seed)), pictures("train"), pictures("test")
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: CLAIM.setting.samples]]
    wanted = logits(net, test).log_softmax(-1)
    option, _, tuned = text.partition(", ")
    made, size = net, 0
    if option != "inputs alone":
        fit = modicum.fit(
            net, data=[(part,) for part in x.split(32)], method=option, target="modicum", retune=bool(tuned), allow_broken=True
        )
        made, size = fit.model.eval(), fit.receipt["bytes"]["actual"]
    found = rounded(made, x, test).log_softmax(-1)
    kl = float((wanted.exp() * (wanted - found)).sum(1).mean())
    return {"divergence": kl, "accuracy": float((found.argmax(1) == labels).float().mean()), "bytes": size}


def rounded(net: nn.Module, x: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """What a net says of the test pictures with the inputs of its layers in four bits, unsigned, under one scale each."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    seen: dict[str, torch.Tensor] = {}
    hooks = [layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]})) for name, layer in layers.items()]
    logits(net, x[:128])
    for hook in hooks:
        hook.remove()
    scales = {name: scale(value) for name, value in seen.items()}
    hooks = [layer.register_forward_pre_hook(lambda _, args, name=name: (coded(args[0], scales[name]),)) for name, layer in layers.items()]
    found = logits(net, test)
    for hook in hooks:
        hook.remove()
    return found


def coded(value: torch.Tensor, step: float) -> torch.Tensor:
    """Numbers that are not negative in so many levels."""
    return (value / step).round().clamp(0, LEVELS) * step


def scale(value: torch.Tensor) -> float:
    """The step of least squared error among shares of the range."""
    steps = [float(value.max()) * share / LEVELS for share in torch.linspace(0.2, 1.0, 33).tolist()]
    return min(steps, key=lambda step: float((coded(value, step) - value).square().sum()))


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    texts = (setting.method, *setting.baselines, *setting.beside)
    found = {text: [kept(f"{text}, seed {seed}", functools.partial(fitted, text, seed)) for seed in setting.seeds] for text in texts}
    rows = [{"option": text, **{name: [each[name] for each in found[text]] for name in found[text][0]}} for text in texts]
    gains = [b["divergence"] - a["divergence"] for a, b in zip(found[setting.method], found[setting.baselines[0]])]
    mean = lambda text, name: statistics.mean(each[name] for each in found[text])
    figures = {f"{text}, share of test pictures right": mean(text, "accuracy") for text in texts}
    same = all(a["bytes"] == b["bytes"] for a, b in zip(found[setting.method], found[setting.baselines[0]]))
    data = "nets trained on Scikit-learn's digits as colour pictures of 16 by 16"
    show(result(CLAIM, kept, rows, gains, figures, {"same bytes": same}, data))


if __name__ == "__main__":
    main()
