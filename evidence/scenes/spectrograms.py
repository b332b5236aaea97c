"""Sounds as spectrograms: tones, sweeps and trills in noise, and a small audio spectrogram transformer that tells eight kinds of them apart."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scenes import Made, scene
from scenes.training import classes, drawn, fitted

# Bands and frames of a spectrogram; samples of a sound, of which a window is so many and the next begins so many later.
BANDS, FRAMES, CLASSES = 16, 32, 8
_RATE, _WINDOW, _HOP = 4096, 256, 128
_SAMPLES = _WINDOW + _HOP * (FRAMES - 1)
_PARTS = {"train": (0, 60), "validation": (1, 40), "test": (2, 80)}
_STEPS, _BATCH, _EACH, _LEARNING = 600, 64, 200, 2e-3

Sound = Callable[[torch.Tensor, Callable[[float, float], float]], torch.Tensor]
_tone = lambda frequency: torch.sin(2 * math.pi * frequency.cumsum(0) / _RATE)
_steady = lambda t, f: _tone(torch.full_like(t, f))


def _pulses(t: torch.Tensor, every: float, share: float) -> torch.Tensor:
    return ((t / every) % 1 < share).float()


# What the transformer is trained on, and the other sounds that it is adapted to: of each, by time (samples,) and a drawer of numbers.
KINDS: dict[str, tuple[Sound, ...]] = {
    "first": (
        lambda t, u: _steady(t, u(200, 1800)),
        lambda t, u: _tone(u(150, 600) + u(600, 1200) * t / t[-1]),
        lambda t, u: _tone(u(1000, 1900) - u(600, 900) * t / t[-1]),
        lambda t, u: _tone(u(400, 1500) + u(60, 160) * torch.sin(2 * math.pi * u(3, 8) * t)),
        lambda t, u: _steady(t, u(300, 1700)) * (1 + torch.sin(2 * math.pi * u(4, 12) * t)) / 2,
        lambda t, u: _steady(t, u(200, 900)) + _steady(t, u(1000, 1900)),
        lambda t, u: _steady(t, u(300, 1700)) * _pulses(t, u(0.08, 0.2), 0.4),
        lambda t, u: torch.zeros_like(t),
    ),
    "second": (
        lambda t, u: sum(_steady(t, f * u(0.97, 1.03)) for f in (250, 500, 1000)),
        lambda t, u: sum(_steady(t, f * u(0.97, 1.03)) for f in (300, 900, 1500)),
        lambda t, u: _tone(900 + u(500, 800) * torch.sin(2 * math.pi * u(0.8, 1.4) * t)),
        lambda t, u: _tone(900 - u(500, 800) * torch.sin(2 * math.pi * u(0.8, 1.4) * t)),
        lambda t, u: _steady(t, u(300, 1700)) * _pulses(t, u(0.08, 0.16), 0.25),
        lambda t, u: _steady(t, u(300, 1700)) * _pulses(t, u(0.2, 0.35), 0.5),
        lambda t, u: _steady(t, u(300, 900)) * (t < u(0.4, 0.6)) + _steady(t, u(1000, 1800)) * (t >= u(0.4, 0.6)),
        lambda t, u: _steady(t, u(1000, 1800)) * (t < u(0.4, 0.6)) + _steady(t, u(300, 900)) * (t >= u(0.4, 0.6)),
    ),
}


@functools.cache
def sounds(kind: str, part: str = "train", each: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectrograms (sounds, frames, bands) of mean 0 and deviation 1, and the kind of each."""
    seed, count = _PARTS[part]
    chance = torch.Generator().manual_seed(1000 * sorted(KINDS).index(kind) + seed)
    drawer = lambda low, high: low + (high - low) * float(torch.rand((), generator=chance))
    t, found, labels = torch.arange(_SAMPLES) / _RATE, [], []
    for label, sound in enumerate(KINDS[kind]):
        for _ in range(each or count):
            wave = drawer(0.3, 1.0) * sound(t, drawer)
            found.append(wave + drawer(0.3, 0.8) * torch.randn(_SAMPLES, generator=chance))
            labels.append(label)
    power = torch.stft(
        torch.stack(found), _WINDOW, _HOP, window=torch.hann_window(_WINDOW), center=False, return_complex=True
    ).abs().square()[:, :-1]  # fmt: skip
    bands = power.reshape(len(found), BANDS, -1, FRAMES).mean(2).clamp_min(1e-6).log().transpose(1, 2)
    return (bands - bands.mean((1, 2), keepdim=True)) / bands.std((1, 2), keepdim=True), torch.tensor(labels)


def net() -> Any:
    """An audio spectrogram transformer of 100,000 parameters, patches of 4 by 4."""
    from transformers import ASTConfig, ASTForAudioClassification

    return ASTForAudioClassification(
        ASTConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, num_mel_bins=BANDS, max_length=FRAMES, patch_size=4,
            frequency_stride=4, time_stride=4, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


@scene()
def listener(folder: Path, seed: int = 0) -> dict[str, Any]:
    """The net trained on the first kinds of sounds; told is its accuracy on others of them."""
    torch.manual_seed(seed)
    model, (x, y) = net(), sounds("first", "train", _EACH)
    fitted(model, ((x[places], y[places]) for places in drawn(len(x), _BATCH, seed)), classes, _LEARNING, _STEPS)
    torch.save(model.state_dict(), folder / "weights.pt")
    return {"accuracy": accuracy(model, *sounds("first", "test"))}


def opened(made: Made, seed: int = 0) -> nn.Module:
    """The net with a head that begins at random."""
    torch.manual_seed(seed)
    model = net()
    own = {
        name: value for name, value in torch.load(made.folder / "weights.pt", weights_only=True).items() if "classifier.dense" not in name
    }
    model.load_state_dict(own, strict=False)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of sounds whose kind is told."""
    return float((torch.cat([model(some).logits for some in x.split(256)]).argmax(1) == y).float().mean())
