"""Fine-tuning held where ordinary text feels it, in coordinates in which every direction is felt alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from modicum.core.errors import ModelError
from modicum.core.method import Paper
from modicum.core.settings import param
from modicum.edit.curvature import Whitened, moments, whitening
from modicum.edit.editor import Editor, Past
from modicum.edit.facts import Fact
from modicum.edit.rows import IGNORED, Rows
from modicum.edit.taught import Taught, parts

# Tokens of a window of text, windows that run at once, and steps that the search remembers.
_WINDOW, _TOGETHER, _REMEMBERED = 64, 16, 8


@dataclass(frozen=True, kw_only=True)
class Kfac(Editor):
    """Least in ``Σ max(0, margin - odds)² + hold · KL + prior · |X|² / 2`` for the change ``D = L_g⁻ᵀ X L_x⁻¹`` of every linear layer in the blocks.

    ``odds`` are the log odds of each target's token, ``KL`` is the divergence from the model as it was on ordinary text, and ``L_x L_xᵀ`` and
    ``L_g L_gᵀ`` are the second moments of a layer's inputs and output gradients there, the Kronecker factors of the Fisher information: in ``X`` all
    directions make text diverge alike, so a quasi-Newton search (L-BFGS) gets far in few steps. Each of the ``rounds`` draws other
    contexts, and takes the windows of text that diverge most by then. A target that has its margin asks for nothing more.

    *Needs and cost:* up to ``rounds · steps`` forward and backward passes of the facts and of ``text`` windows; memory for 20 times the layers'
    weights in float32, which ``layers`` bounds. Facts of earlier batches are held by nothing: all should be taught at once.
    *Differs from the paper:* the divergence itself is held beside its approximation, which misses that changes of several layers add up.
    """

    paper: ClassVar[Paper | None] = Paper(
        title="Optimizing Neural Networks with Kronecker-factored Approximate Curvature",
        arxiv="1503.05671",
        year=2015,
        authors="James Martens and Roger Grosse",
    )

    rounds: int = param(5, "times that contexts are drawn, and windows of text chosen, anew", between=(1, 1000))
    steps: int = param(12, "evaluations of the loss in each round", between=(1, 100_000))
    margin: float = param(2.0, "log odds of a target's token against all others that are enough, in nats", between=(0.0, 100.0))
    hold: float = param(100.0, "weight of the divergence on those windows, in nats a token of all text", between=(0.0, 1e9))
    prior: float = param(2.0, "weight of the length of the change, in units of what text feels", between=(1e-9, 1e9))
    text: int = param(48, "windows of 64 tokens of ordinary text in each round, those that diverge most", between=(1, 100_000))
    damping: float = param(0.1, "share of the mean by which output gradients' moments are damped", between=(1e-9, 1e6))
    ridge: float = param(1e-3, "share of the mean by which inputs' moments are damped", between=(1e-9, 1e6))
    contexts: int = param(2, "texts before each fact beside none, other ones in each round", between=(0, 1000))

    @override
    def among(self, taught: Taught) -> list[str]:
        return list(taught.writable)

    @override
    def shares(self) -> tuple[float, float]:
        return 0.0, 1.0

    def _windows(self, taught: Taught, layers: Whitened, flat: torch.Tensor) -> torch.Tensor:
        """The windows (count, tokens) of the protected text that diverge most by now; evenly spread where nothing has changed."""
        size = min(_WINDOW, taught.sequences.shape[1])
        every = taught.sequences[:, : taught.sequences.shape[1] // size * size].reshape(-1, size)
        count = min(self.text, len(every))
        if not bool(flat.any()):
            return every[:: len(every) // count][:count]
        apart = []
        for some in every.split(_TOGETHER):
            old = _said(taught.module, some)
            with layers.holding(flat):
                apart.append((old.exp() * (old - _said(taught.module, some))).sum((1, 2)))
        return every[torch.cat(apart).topk(count).indices.sort().values]

    @override
    def teach(self, taught: Taught, facts: Sequence[Fact], past: Past) -> Past:
        known = moments(taught, self.chosen(taught))
        if not known:
            raise ModelError("kfac: a layer that is written must be called where the model computes, none is. Take other layers.")
        white = {name: (whitening(g, self.damping), whitening(x, self.ridge)) for name, (x, g) in known.items()}
        layers = Whitened(taught, list(known), white)
        flat = torch.zeros(layers.size, requires_grad=True)
        search = torch.optim.LBFGS(
            [flat], max_iter=self.steps, max_eval=self.steps, history_size=_REMEMBERED, line_search_fn="strong_wolfe",
            tolerance_grad=0, tolerance_change=0,
        )  # fmt: skip
        for turn in range(self.rounds):
            rows = self.rows(taught, facts, turn).by_length()
            with torch.no_grad():
                text = self._windows(taught, layers, flat.detach())
                before = [_said(taught.module, some) for some in text.split(_TOGETHER)]

            def closure(rows: Rows = rows, text: torch.Tensor = text, before: list[torch.Tensor] = before) -> torch.Tensor:
                with layers.holding(flat.detach()) as gradient:
                    value = self._asked(taught, rows) + self._felt(taught, text, before)
                    flat.grad = gradient() + self.prior * flat.detach()
                value += self.prior * float(flat.detach().square().sum()) / 2
                if not bool(torch.isfinite(flat.grad).all()):
                    raise ModelError("kfac: the loss must be a number, is not. Hold more, or take fewer layers.")
                return torch.tensor(value)

            search.state[flat]["t"] = 0  # its last gradient was of another loss, and the difference tells nothing
            search.step(closure)
        taught.add(layers.changes(flat.detach()))
        return Past(past.count + len(facts), past.sums)

    def _asked(self, taught: Taught, rows: Rows) -> float:
        """What is missing of the margins, a row's mean; its gradient is added to the layers' weights."""
        total = 0.0
        for part in parts(rows):
            with torch.enable_grad():
                logits, labels = taught.logits(part)[:, :-1], part.labels[:, 1:]
                places = labels != IGNORED
                odds = _odds(logits[places], labels[places])
                loss = nn.functional.relu(self.margin - odds).square().sum() / len(rows)
                loss.backward()
            total += float(loss.detach())
        return total

    def _felt(self, taught: Taught, text: torch.Tensor, before: Sequence[torch.Tensor]) -> float:
        """``hold`` times the divergence, nats a token; its gradient is added to the layers' weights."""
        total = 0.0
        for some, old in zip(text.split(_TOGETHER), before) if self.hold else ():
            with torch.enable_grad():
                loss = self.hold * (old.exp() * (old - _said(taught.module, some))).sum() / taught.sequences.numel()
                loss.backward()
            total += float(loss.detach())
        return total


def _odds(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log odds (places,) of labels against all other tokens."""
    chosen = logits.gather(1, labels[:, None])
    return chosen[:, 0] - logits.scatter(1, labels[:, None], float("-inf")).logsumexp(1)


def _said(module: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = module(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    return found
