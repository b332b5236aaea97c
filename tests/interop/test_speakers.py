"""A speaker encoder of recurrent layers tells voices apart as before at a quarter of its bytes."""

import models
import numpy as np
import pytest
import torch

import modicum


@pytest.fixture(scope="module")
def spoken(package):
    package("resemblyzer")
    package("espeakng_loader")
    return models.voices()


@pytest.fixture(scope="module")
def fitted(spoken, tmp_path_factory):
    data = models.spectrograms(spoken[:60]).split(6)
    return modicum.fit(models.speaker_encoder(), bpw=8, data=data, out=tmp_path_factory.mktemp("voices") / "out")


def test_the_same_embeddings_for_sentences_it_was_not_fitted_on(spoken, fitted):
    both = models.speaker_encoder(), modicum.load(fitted.out, into=models.speaker_encoder())
    before, after = (torch.tensor(np.array([model.embed_utterance(sound) for sound in spoken[60:]])) for model in both)
    cosines = torch.cosine_similarity(before, after)
    assert float(cosines.min()) >= 0.999
    # Who speaks: the voice whose sentence is nearest. Both must name the same.
    nearest = [(table @ table.T - 2 * torch.eye(len(table))).argmax(1) % len(models.VOICES) for table in (before, after)]
    assert float((nearest[0] == nearest[1]).float().mean()) > 0.9


def test_its_gates_are_treated(fitted):
    receipt = fitted.receipt
    assert receipt["bytes"]["actual"] <= receipt["bytes"]["allowed"]
    assert receipt["coverage"]["share"] > 0.99
    treated = {site["site"] for site in receipt["sites"] if site["option"] != "keep"}
    assert {f"lstm.weight_{side}h_l{layer}" for side in "ih" for layer in range(3)} <= treated
