"""S321, SlimSAM: a small ViT's heads and channels go in turns with distillation between, against all at once with as many updates afterwards.

ViTs trained on Scikit-learn's digits by three seeds lose half of what their coupled cuts hold, without labels: groups go by disturbed Taylor
importance, and what remains is distilled to give the features of every block. In turns: half of the heads, half of the updates; then the channels, by
importance taken anew, and the rest. At once: the same share by one importance. Beside them at once by the norms of weights. The width of the
embedding stays, which the paper prunes too. What goes is masked, so that all have one size; the parameters that count are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from common import Claim, Setting, result, show
from kept import Kept
from modicum.core.unit import Site
from modicum.drop import Slimsam
from modicum.drop._masks import mask_gradients
from modicum.models.open import open_model
from modicum.sweep import rehearse
from modicum.sweep.coupling import coupled_cuts
from scenes.digits import accuracy, classifier, logits, opened, pictures
from scenes.training import drawn, fitted

UPDATES, BATCH, RATE, SEEN = 120, 64, 1e-3, 64
CLAIM = Claim(
    id="S321",
    system="SlimSAM",
    claim="On a small ViT encoder, alternately prune embedding and bottleneck dimensions by disturbed Taylor importance (gradients of feature loss "
    "against noise-perturbed features, no labels) with intermediate-feature distillation; beats one-shot prune-and-distil at equal size.",
    metric="mean KL of the test pictures' classes to the original's, of pruning at once and distilling minus that of pruning in turns, half of the "
    "heads and channels kept, as many updates",
    margin=2.0,
    setting=Setting(
        method="in turns", baselines=("at once",), beside=("at once, by norms", "at once, not distilled"), tokens=1, test_samples=497
    ),
)
Masks = dict[str, torch.Tensor]


class Pruned:
    """A net whose consumers' inputs are masked."""

    def __init__(self, seed: int):
        made = classifier(net="vit", seed=seed)
        self.teacher, self.net, self.seed = opened(made, "vit"), opened(made, "vit"), seed
        self.x = pictures("train")[0]
        model = open_model(self.teacher)
        self.sites = coupled_cuts(model, rehearse(model, (self.x[:8],)), (self.x[:8],))
        self.masks: Masks = {}
        for site in self.sites:
            name = site.axes[-1].unit.removesuffix(".weight")
            self.net.get_submodule(name).register_forward_pre_hook(functools.partial(self._masked, site.name))

    def _masked(self, site: str, _: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        return None if site not in self.masks else (args[0] * self.masks[site], *args[1:])

    def importance(self, sites: Sequence[Site]) -> Mapping[str, torch.Tensor]:
        """Disturbed Taylor importance of groups, in the net as it is; what is masked has none."""
        model = open_model(self.net)
        found = mask_gradients(model, rehearse(model, (self.x[:8],)), [(self.x[:SEEN],)], sites, self.seed, drawn=True)
        return {name: Slimsam().importance(value) for name, value in found.items()}

    def norms(self, sites: Sequence[Site]) -> Mapping[str, torch.Tensor]:
        """Squared norms of consumers' columns."""
        columns = lambda site: self.net.get_parameter(site.axes[-1].unit).detach().square().sum(0)
        return {site.name: torch.stack([columns(site)[list(group)].sum() for group in site.axes[-1].groups]) for site in sites}

    def cut(self, sites: Sequence[Site], scores: Callable[[Sequence[Site]], Mapping[str, torch.Tensor]]) -> None:
        """Mask the lower half of each site's groups."""
        found = scores(sites)
        for site in sites:
            mask = torch.ones(sum(map(len, site.axes[-1].groups)))
            for group in found[site.name].argsort()[: len(site.axes[-1].groups) // 2].tolist():
                mask[list(site.axes[-1].groups[group])] = 0
            self.masks[site.name] = mask

    def distil(self, updates: int, seed: int) -> None:
        """Train the net to give what each block of the teacher gives."""

        def apart(net: nn.Module, places: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                wanted = self.teacher.vit(self.x[places], output_hidden_states=True).hidden_states
            found = net.vit(self.x[places], output_hidden_states=True).hidden_states
            return sum((a - b).square().mean() / b.square().mean() for a, b in zip(found[1:], wanted[1:]))

        if updates:
            fitted(self.net, drawn(len(self.x), BATCH, seed), apart, RATE, updates)

    def judged(self) -> dict[str, float]:
        """On the test pictures."""
        x, y = pictures("test")
        one, other = (logits(net.eval(), x).log_softmax(-1) for net in (self.teacher, self.net))
        return {"divergence": float((one.exp() * (one - other)).sum(1).mean()), "accuracy": accuracy(self.net, x, y)}


def seen(text: str, seed: int) -> dict[str, Any]:
    """One way on one net."""
    pruned = Pruned(seed)
    kinds = [[site for site in pruned.sites if site.name.endswith(end)] for end in (":heads", ":ffn")]
    if text == "in turns":
        for sites in kinds:
            pruned.cut(sites, pruned.importance)
            pruned.distil(UPDATES // 2, seed)
    else:
        pruned.cut(pruned.sites, pruned.norms if text.endswith("norms") else pruned.importance)
        pruned.distil(0 if text.endswith("distilled") else UPDATES, seed)
    return pruned.judged() | {"groups kept": sum(int(mask.sum()) for mask in pruned.masks.values())}


def main() -> None:
    kept, setting = Kept.of(CLAIM.id), CLAIM.setting
    texts = (setting.method, *setting.baselines, *setting.beside)
    found = {text: [kept(f"{text}, seed {seed}", functools.partial(seen, text, seed)) for seed in setting.seeds] for text in texts}
    rows = [{"option": text, **{name: [each[name] for each in found[text]] for name in found[text][0]}} for text in texts]
    gains = [b["divergence"] - a["divergence"] for a, b in zip(found[setting.method], found[setting.baselines[0]])]
    same = all(a["groups kept"] == b["groups kept"] for a, b in zip(found[setting.method], found[setting.baselines[0]]))
    show(result(CLAIM, kept, rows, gains, {}, {"same size": same}, "ViTs trained on Scikit-learn's digits as colour pictures of 16 by 16"))


if __name__ == "__main__":
    main()
