"""Recordings from files: WAV in PCM by the standard library, all else by libsndfile where it is installed."""

from __future__ import annotations

import wave
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from modicum.core.errors import DataError, quoted

WAV = frozenset({".wav", ".wave"})
OTHERS = frozenset({".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au"})
# Of a longer recording the first seconds are taken.
SECONDS = 30
# Samples a second that a file may say: a resampler's filter is as long as the larger of two rates without common divisors.
_RATES = (1000, 1_000_000)
_BLOCK = 1 << 20  # samples of all channels read at once
_WIDTHS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<i2"), 4: np.dtype("<i4")}


def recorded(file: Path, rate: int) -> np.ndarray:
    """The recording as float32 (samples,) of one channel, at ``rate`` a second, which a model's files may say too.

    Raises ``DataError``, also where the reader it needs is missing, and for a rate that no recording has.
    """
    from scipy.signal import resample_poly

    if not isinstance(rate, int) or not _RATES[0] <= rate <= _RATES[1]:
        raise DataError(
            f"data: the model's processor must ask for {_RATES[0]:,} to {_RATES[1]:,} samples a second, asks for {quoted(str(rate))}. Mend its files."
        )
    try:
        values, own = _read(file)
        if not len(values):
            raise ValueError("it holds no sound")
        step = gcd(own, rate)
        return (values if own == rate else resample_poly(values, rate // step, own // step)).astype(np.float32)
    except DataError:
        raise
    except Exception as error:  # whatever the reader raises at bytes that are no recording
        raise DataError(f"data: {file} must be a recording, reading it gave: {quoted(error)}. Mend the file or leave it out.") from error


def _read(file: Path) -> tuple[np.ndarray, int]:
    """Samples between -1 and 1 in float64, and how many a second has."""
    try:
        with wave.open(str(file), "rb") as opened:
            own, channels, width = opened.getframerate(), opened.getnchannels(), opened.getsampwidth()
            _require_rate(own)
            data = opened.readframes(min(opened.getnframes(), SECONDS * own))
    except (wave.Error, EOFError) as error:  # no WAV, or one of another encoding
        return _by_library(file, error)
    return _numbers(data, width).reshape(-1, channels).mean(1), own


def _by_library(file: Path, why: Exception) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ImportError, OSError):  # or the library beneath it
        raise DataError(
            f"data: {file} is no WAV recording in PCM ({quoted(why)}), and others need soundfile, not installed here. "
            "Run: pip install 'modicum[sound]'."
        ) from None
    with soundfile.SoundFile(file) as opened:
        own, left, blocks = opened.samplerate, SECONDS * opened.samplerate, []
        _require_rate(own)
        while left > 0 and len(block := opened.read(min(left, max(1, _BLOCK // opened.channels)), dtype="float64", always_2d=True)):
            blocks.append(block.mean(1))
            left -= len(block)
    return np.concatenate(blocks or [np.zeros(0)]), own


def _require_rate(rate: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise ValueError(f"it says {rate} samples a second")


def _numbers(data: bytes, width: int) -> np.ndarray:
    """Samples between -1 and 1."""
    if width == 3:  # into the upper three of four bytes
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8, len(padded) * 3).reshape(-1, 3)
        data, width = padded.tobytes(), 4
    values = np.frombuffer(data, _WIDTHS[width], len(data) // width).astype(np.float64)
    return (values - 128) / 128 if width == 1 else values / 2.0 ** (8 * width - 1)
