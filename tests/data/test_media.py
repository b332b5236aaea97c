"""Pictures and sound from folders: what comes of them, what is used, and what is refused in one sentence."""

import sys
import wave

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image
from torch import nn

import modicum
from modicum.core.errors import DataError, ModelError
from modicum.data import sound
from modicum.data.media import from_files

RATE = 16000


class Sees(nn.Module):
    main_input_name = "pixel_values"

    def forward(self, pixel_values, pixel_mask=None):
        return pixel_values.mean((2, 3))


class Hears(nn.Module):
    main_input_name = "input_values"

    def forward(self, input_values):
        return input_values


class SeesAndReads(Sees):
    def forward(self, pixel_values, input_ids):
        return pixel_values.mean() + input_ids


def pictures(folder, count=12):
    generator = np.random.default_rng(0)
    for place in range(count):
        inside = folder / ("deep" if place % 2 else ".")
        inside.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(inside / f"{place}.{'png' if place % 3 else 'jpg'}")
    return folder


def recording(file, values, rate=RATE, width=2, channels=1):
    """A WAV file of ``values`` between -1 and 1, of each channel alike."""
    whole = np.repeat(np.round(values * (2 ** (8 * width - 1) - 1)).astype("<i8"), channels)
    if width == 1:
        whole = whole + 128
    bytes_ = np.ascontiguousarray(whole).view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    with wave.open(str(file), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(bytes_)


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    home = tmp_path_factory.mktemp("processors")
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(home / "sees")
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=False).save_pretrained(home / "hears")
    return home


def test_pictures_at_every_depth_become_three_parts(processors, tmp_path):
    found = from_files(pictures(tmp_path / "photos"), Sees(), processors / "sees", samples=5, test_samples=2, batch=4)
    shapes = [[tuple(batch["pixel_values"].shape) for batch in part] for part in (found.calibration, found.validation, found.test)]
    assert shapes == [[(4, 3, 16, 16), (1, 3, 16, 16)], [(1, 3, 16, 16)], [(2, 3, 16, 16)]]
    assert found.taken == {"kind": "pictures", "files": 12, "used_files": 8, "share": pytest.approx(2 / 3)}
    again = from_files(tmp_path / "photos", Sees(), processors / "sees", samples=5, test_samples=2, batch=4)
    other = from_files(tmp_path / "photos", Sees(), processors / "sees", samples=5, test_samples=2, batch=4, seed=1)
    assert again.hashes == found.hashes != other.hashes


def test_a_picture_that_is_there_twice_is_in_one_part(processors, tmp_path):
    photos = pictures(tmp_path / "photos", 4)
    for place in range(8):
        (photos / f"again{place}.png").write_bytes((photos / "2.png").read_bytes())
    found = from_files(photos, Sees(), processors / "sees")
    rows = [
        row.numpy().tobytes()
        for part in (found.calibration, found.validation, found.test)
        for batch in part
        for row in batch["pixel_values"]
    ]
    assert len(rows) == len(set(rows)) == found.taken["used_files"] == 4
    assert "8 of 12 files of pictures repeat another and were left out." in found.notes


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_is_what_was_recorded(processors, tmp_path, width, channels):
    values = np.sin(2 * np.pi * 440 * np.arange(800) / RATE) * 0.5
    for place in range(3):
        recording(tmp_path / f"{place}.wav", values * (1 - place / 4), width=width, channels=channels)
    found = from_files(tmp_path, Hears(), processors / "hears")
    heard = sorted((batch["input_values"][0].numpy() for part in (found.calibration, found.test) for batch in part), key=np.ptp)
    assert all(min(np.abs(values * (1 - place / 4) - row).max() for place in range(3)) < 2.1 / 2 ** (8 * width - 1) + 1e-6 for row in heard)


def test_recordings_are_brought_to_the_processors_rate_and_cut(processors, tmp_path):
    tone = lambda rate, seconds: np.sin(2 * np.pi * 100 * np.arange(rate * seconds) / rate) * 0.5
    for place in range(3):
        recording(tmp_path / f"{place}.wav", tone(8000, 31 + place), rate=8000)
    (row,) = from_files(tmp_path, Hears(), processors / "hears", samples=1).calibration[0]["input_values"].numpy()
    assert len(row) == 30 * RATE
    inner = slice(RATE, 2 * RATE)
    assert np.abs(row[inner] - tone(RATE, 30)[inner]).max() < 0.01


@pytest.mark.parametrize(
    ("suffix", "subtype", "close"),
    [("flac", "PCM_16", 1e-4), ("wav", "FLOAT", 1e-6), ("wav", "ULAW", 0.03), ("ogg", "VORBIS", 0.1), ("mp3", "MPEG_LAYER_III", 0.1)],
)
def test_other_recordings_are_read_by_libsndfile(tmp_path, suffix, subtype, close):
    values = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) * 0.5
    soundfile.write(file := tmp_path / f"one.{suffix}", np.stack([values, values / 2], 1), RATE, subtype)
    heard = sound.recorded(file, RATE)
    inner = slice(RATE // 4, RATE // 2)
    assert heard.dtype == np.float32 and np.abs(heard[inner] - 0.75 * values[inner]).max() < close
    assert len(sound.recorded(file, RATE // 2)) == pytest.approx(RATE / 2, abs=1200)


def test_without_libsndfile_it_says_what_to_install(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "one.flac", np.zeros(100), RATE)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(
        DataError, match=r"one.flac is no WAV recording in PCM .* need soundfile, not installed here. Run: pip install 'modicum\[sound\]'"
    ):
        sound.recorded(tmp_path / "one.flac", RATE)


def test_a_rate_that_no_recording_has_is_refused_before_a_filter_is_made_for_it(tmp_path):
    recording(file := tmp_path / "one.wav", np.zeros(100))
    data = bytearray(file.read_bytes())
    data[24:28] = (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(DataError, match="it says 2147483647 samples a second"):
        sound.recorded(file, RATE)


def test_what_cannot_be_used_is_told_in_one_sentence(processors, tmp_path):
    photos = pictures(tmp_path / "photos", 4)
    with pytest.raises(DataError, match="takes pictures, for which modicum ships none. Pass --data FOLDER"):
        from_files(None, Sees(), processors / "sees")
    with pytest.raises(
        DataError,
        match=r"must be a folder with at least three different files of sound \(.aif, .*, .wav, .wave\), one for each part, 0 were",
    ):
        from_files(photos, Hears(), processors / "hears")
    with pytest.raises(DataError, match="nowhere must be a folder with at least three different files of pictures .* 0 were found"):
        from_files(tmp_path / "nowhere", Sees(), processors / "sees")
    with pytest.raises(DataError, match="must hold input_ids beside pixel_values, which pictures alone do not give"):
        from_files(photos, SeesAndReads(), processors / "sees")
    with pytest.raises(ModelError, match="has no processor beside it, which pictures need"):
        from_files(photos, Sees(), tmp_path)
    (photos / "0.jpg").write_bytes((photos / "0.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match=r"0.jpg must be a picture, reading it gave"):
        from_files(photos, Sees(), processors / "sees")


def test_a_model_on_disk_is_fitted_and_judged_on_a_folder(processors, tmp_path):
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**settings, image_size=16, patch_size=8, num_labels=5)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "model")
    photos = pictures(tmp_path / "photos")
    told = modicum.fit(tmp_path / "model", method="nearest bits=4 group=0", data=str(photos), out=tmp_path / "out").receipt
    assert told["data"]["taken"]["used_files"] == 12
    judged = modicum.evaluate(tmp_path / "out", reference=tmp_path / "model", data=str(photos))
    assert judged["quality"]["mean"] == pytest.approx(told["quality"]["mean"], rel=1e-4)
    assert judged["data"]["hash"] == told["data"]["hashes"]["test"]


@pytest.mark.parametrize("rate", [0, -16000, 2**31 - 1, "16000", None])
def test_a_rate_that_no_recording_has_is_refused_before_anything_is_made_for_it(tmp_path, rate):
    """The filter of a resampler is as long as the larger rate: a slip in a model's file would ask for more memory than there is."""
    with pytest.raises(DataError, match=r"must ask for 1,000 to 1,000,000 samples a second, asks for"):
        sound.recorded(tmp_path / "none.wav", rate)
