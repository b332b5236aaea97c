"""Encoders, vision, speech and encoder–decoders: what Transformers opens from a container is what its forms hold, to the bit."""

from pathlib import Path

import pytest
import torch
import transformers as hf

import modicum

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 128}
IMAGE = {**TEXT, "image_size": 32, "patch_size": 8, "num_labels": 3}
IMAGE.pop("vocab_size")


def words(rows=4, length=10):
    return torch.randint(5, 120, (rows, length))


def pictures(size=32):
    return {"pixel_values": torch.randn(4, 3, size, size)}


def bert(name):
    config = hf.BertConfig(**TEXT, max_position_embeddings=32, num_labels=3)
    return getattr(hf, name)(config), lambda: {"input_ids": words()}


def t5(apart):
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 128}
    model = hf.T5ForConditionalGeneration(hf.T5Config(**sizes, tie_word_embeddings=True, decoder_start_token_id=0))
    if apart:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(128, 32) / 10)
    return model, lambda: {"input_ids": words(), "decoder_input_ids": words(length=6)}


def resnet():
    config = hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=3)
    return hf.ResNetForImageClassification(config), lambda: pictures(64)


def vit_and_bert():
    decoder = hf.BertLMHeadModel(hf.BertConfig(**TEXT, max_position_embeddings=32, is_decoder=True, add_cross_attention=True))
    model = hf.VisionEncoderDecoderModel(encoder=hf.ViTModel(hf.ViTConfig(**IMAGE)), decoder=decoder)
    return model, lambda: pictures() | {"decoder_input_ids": words(length=6)}


def wav2vec2():
    sound = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    config = hf.Wav2Vec2Config(**{**TEXT, "vocab_size": 20}, **sound, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    return hf.Wav2Vec2ForCTC(config), lambda: {"input_values": torch.randn(4, 800)}


KINDS = {
    "text classes": lambda: bert("BertForSequenceClassification"),
    "token classes": lambda: bert("BertForTokenClassification"),
    "masked words": lambda: bert("BertForMaskedLM"),
    "picture classes": lambda: (hf.ViTForImageClassification(hf.ViTConfig(**IMAGE)), pictures),
    "residual convolutions": resnet,
    "speech": wav2vec2,
    "tied encoder and decoder": lambda: t5(False),
    "tied by the config alone": lambda: t5(True),
    "picture to text": vit_and_bert,
}


def made(folder, kind):
    torch.manual_seed(0)
    model, batch = KINDS[kind]()
    model.eval().save_pretrained(folder / "in")
    data = [batch() for _ in range(3)]
    modicum.fit(folder / "in", method="nearest bits=8 group=0", data=data, target="modicum", out=folder / "out")
    return model, data[0], folder / "out"


def answer(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_as_its_forms_hold_it(tmp_path, kind):
    model, batch, out = made(tmp_path, kind)
    opened, report = type(model).from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(answer(opened, batch), answer(modicum.load(out), batch))
    original = answer(model, batch)
    assert float((answer(opened, batch) - original).norm() / original.norm()) < 0.05


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return made(tmp_path_factory.mktemp("classifier"), "text classes")


@pytest.mark.parametrize(
    "how",
    [{"device_map": "cpu"}, {"low_cpu_mem_usage": True}, {"dtype": "auto"}, {"dtype": torch.float32}],
    ids=lambda how: next(iter(how)),
)
def test_ways_to_open_it(classifier, how):
    model, batch, out = classifier
    if "device_map" in how:
        pytest.importorskip("accelerate")
    opened = hf.AutoModelForSequenceClassification.from_pretrained(f"{out}/", **how)
    assert torch.equal(answer(opened, batch), answer(modicum.load(out), batch))


def test_from_a_folder_within_a_folder(classifier):
    model, batch, out = classifier
    opened = hf.AutoModelForSequenceClassification.from_pretrained(Path(out).parent, subfolder=out.name)
    assert torch.equal(answer(opened, batch), answer(modicum.load(out), batch))
