"""Folders of pictures and sound with texts: a table names each file with its caption or transcript, and the model gets both."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
import transformers
from click.testing import CliRunner
from PIL import Image

import modicum
from modicum.cli.main import main
from modicum.core.errors import DataError
from modicum.data.captions import captions
from modicum.data.media import from_files, kind_of
from modicum.models.located import DEMO

TEXTS = ["a red cube", "two small birds", "the sea", "rain on a roof at night", "one", "an old door"]
SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
TINY_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 1040,
    "num_key_value_heads": 2,
}
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 16, "patch_size": 8}


def kept(model, folder):
    """The model's folder, with the demo's tokenizer beside it."""
    model.save_pretrained(folder)
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def listens(tmp_path_factory):
    """A Whisper of recordings of a second, whose decoder begins with the end token as the original's tokenizer writes none."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        **SMALL, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=50, vocab_size=1024,
        decoder_start_token_id=1, pad_token_id=0, bos_token_id=0, eos_token_id=0, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    folder = kept(transformers.WhisperForConditionalGeneration(config), tmp_path_factory.mktemp("listens"))
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    (folder / "deep").mkdir()
    for place in range(len(TEXTS)):
        soundfile.write(folder / "deep" / f"{place}.wav", np.sin(np.arange(8000) / (5 + place)) * 0.5, 16000)
    lines = [json.dumps({"file_name": f"deep/{place}.wav", "transcription": text}) for place, text in enumerate(TEXTS)]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def photos(folder, texts=TEXTS):
    folder.mkdir()
    generator = np.random.default_rng(0)
    for place in range(len(texts)):
        Image.fromarray(generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(folder / f"{place}.png")
    rows = [f'{place}.png,"{text}"\n' for place, text in enumerate(texts)]
    (folder / "metadata.csv").write_text("file_name,text\n" + "".join(rows), encoding="utf-8")
    return folder


def test_a_decoder_reads_its_start_and_the_transcript_without_padding(listens, speech):
    module = transformers.WhisperForConditionalGeneration.from_pretrained(listens)
    tokenizer = transformers.AutoTokenizer.from_pretrained(listens)
    found = from_files(speech, module, listens)
    given = {
        tuple(ids)
        for part in (found.calibration, found.validation, found.test)
        for batch in part
        for ids in batch["decoder_input_ids"].tolist()
    }
    assert given == {(1, *tokenizer(text).input_ids[:-1]) for text in TEXTS}
    assert {tuple(batch["input_features"].shape[1:]) for batch in found.calibration} == {(8, 100)}
    assert found.taken == {"kind": "sound", "files": 6, "used_files": 6, "share": 1.0, "columns": ["transcription"]}


@pytest.mark.slow
def test_a_model_of_speech_is_fitted_and_judged_from_the_command_line(listens, speech, tmp_path):
    run = CliRunner().invoke(
        main, ["fit", str(listens), "--method", "nearest bits=4 group=0", "--data", str(speech), "--out", str(tmp_path / "out"), "--quiet", "--json"]
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    receipt = json.loads(run.stdout)
    assert receipt["coverage"]["share"] > 0.8 and receipt["quality"]["mean"] > 0
    judged = modicum.evaluate(tmp_path / "out", reference=listens, data=str(speech))
    assert judged["quality"]["mean"] == pytest.approx(receipt["quality"]["mean"], rel=1e-3)
    assert judged["data"]["hash"] == receipt["data"]["hashes"]["test"]
    dry = CliRunner().invoke(main, ["fit", str(listens), "--bpw", "8", "--data", str(speech), "--dry-run", "--quiet"])
    assert dry.exit_code == 0 and "of 6 files of sound" in dry.output


def test_pictures_and_captions_reach_a_model_of_both(tmp_path):
    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 1024}
    config = transformers.CLIPConfig(
        text_config={**text, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}, vision_config=VISION, projection_dim=16
    )
    folder = kept(transformers.CLIPModel(config), tmp_path / "model")
    image, tokenizer = (
        transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    transformers.CLIPProcessor(image, tokenizer).save_pretrained(folder)
    told = modicum.fit(folder, method="nearest bits=8 group=0", data=str(photos(tmp_path / "photos")), out=tmp_path / "out").receipt
    assert told["data"]["taken"]["columns"] == ["text"] and told["data"]["taken"]["used_files"] == 6
    assert 0 < told["quality"]["mean"] < 0.01
    judged = modicum.evaluate(tmp_path / "out", reference=folder, data=str(tmp_path / "photos"))
    assert judged["quality"]["mean"] == pytest.approx(told["quality"]["mean"], rel=1e-3)


def test_a_processor_that_writes_the_mark_of_a_picture_itself_is_not_helped(tmp_path):
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    place = tokenizer.convert_tokens_to_ids("<image>")
    text = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 64, "vocab_size": 1040}
    asks = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "encoder_hidden_size": 32}
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config=asks,
        text_config=text | {"word_embed_proj_dim": 32},
        num_query_tokens=4,
        image_token_index=place,
    )
    image = transformers.BlipImageProcessorPil(size={"height": 16, "width": 16})
    transformers.Blip2Processor(image, tokenizer, num_query_tokens=4).save_pretrained(tmp_path)
    model = transformers.Blip2ForConditionalGeneration(config).eval()
    found = from_files(photos(tmp_path / "photos"), model, tmp_path)
    assert int((found.test[0]["input_ids"][0] == place).sum()) == 4
    with torch.no_grad():
        model(**found.test[0])


def test_a_picture_has_its_place_in_the_text(tmp_path):
    """What stands for the picture in the text is put there as the processor wants it."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        kept(transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY_TEXT)), tmp_path / "text")
    )
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    place = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=transformers.LlamaConfig(**TINY_TEXT), image_token_id=place
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "model")
    image = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    transformers.LlavaProcessor(
        image, tokenizer, patch_size=8, vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1
    ).save_pretrained(tmp_path / "model")
    folder = photos(tmp_path / "photos")
    assert kind_of(model, folder) == "pictures" and kind_of(model) == ""
    found = from_files(folder, model, tmp_path / "model")
    ids = found.test[0]["input_ids"]
    assert int((ids[0] == place).sum()) == 4 and found.test[0]["pixel_values"].shape[1:] == (3, 16, 16)
    with torch.no_grad():
        model(**found.test[0])


def test_without_texts_the_refusal_says_what_to_add(listens, speech, tmp_path):
    module = transformers.WhisperForConditionalGeneration.from_pretrained(listens)
    bare = tmp_path / "bare"
    shutil.copytree(speech / "deep", bare)
    with pytest.raises(
        DataError,
        match=r"reads text beside sound, and .*bare names none. Add metadata.csv or metadata.jsonl with the columns file_name and text",
    ):
        from_files(bare, module, listens)


def test_files_without_text_are_left_out_with_a_word(listens, speech, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(speech, some)
    (some / "metadata.jsonl").unlink()
    (some / "metadata.csv").write_text(
        "file_name,text\n" + "".join(f"deep/{place}.wav,{text}\n" for place, text in enumerate(TEXTS[:4])), encoding="utf-8"
    )
    module = transformers.WhisperForConditionalGeneration.from_pretrained(listens)
    found = from_files(some, module, listens)
    assert found.taken["files"] == 4 and "2 files of sound have no text and were left out." in found.notes


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,text\n0.png,a\n", "line 2, must have a file_name, has name, text"),
        ("file_name,text\nnone.png,a\n", "must name a file in the folder, 'none.png' is not there"),
        ("file_name,text\n../1.png,a\n", "must name a file in the folder, '1.png' is not there"),
        ("file_name,text\n0.png,\n", "must have text in 'text', has none"),
        ("file_name,text\n0.png,a\n0.png,b\n", "must name a file once, '0.png' has another text already"),
        ("file_name,a,b\n0.png,x,y\n", "which holds the text cannot be told. Name it with --text-column"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, table, words):
    folder = photos(tmp_path / "photos")
    (tmp_path / "1.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        captions(folder, None)


def test_a_column_is_named(tmp_path):
    folder = photos(tmp_path / "photos", TEXTS[:3])
    (folder / "metadata.csv").write_text("file_name,a,b\n0.png,x,y\n1.png,x,z\n2.png,x,w\n", encoding="utf-8")
    assert sorted(captions(folder, "b").texts.values()) == ["w", "y", "z"]
    (folder / "metadata.csv").unlink()
    with pytest.raises(DataError, match="must hold metadata.csv for --text-column to name its column"):
        captions(folder, "b")


def test_tokens_of_a_picture_before_the_text_have_no_perplexity():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.GitConfig(vision_config=VISION, **sizes, vocab_size=99, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    one, other = (transformers.GitForCausalLM(config).eval() for _ in range(2))
    batch = {
        "input_ids": torch.randint(3, 99, (2, 6)),
        "attention_mask": torch.ones(2, 6).long(),
        "pixel_values": torch.randn(2, 3, 16, 16),
    }
    quality = modicum.evaluate(one, reference=other, data=[batch])["quality"]
    assert quality["tokens"] == 2 * (6 + 5) and quality["mean"] > 0 and "perplexity" not in quality
    with pytest.raises(modicum.ModelError, match="Pass a reference"):
        modicum.evaluate(one, data=[batch])


def test_a_question_about_a_picture_is_answered_from_the_start_token(tmp_path):
    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 1040}
    config = transformers.BlipConfig(text_config=text | {"bos_token_id": 3, "encoder_hidden_size": 32}, vision_config=VISION)
    model = transformers.BlipForQuestionAnswering(config).eval()
    image = transformers.BlipImageProcessorPil(size={"height": 16, "width": 16})
    transformers.BlipProcessor(image, transformers.AutoTokenizer.from_pretrained(DEMO)).save_pretrained(tmp_path)
    batch = from_files(photos(tmp_path / "photos"), model, tmp_path).test[0]
    assert batch["decoder_input_ids"].tolist() == [[3]] * len(batch["decoder_input_ids"])
    with torch.no_grad():
        model(**batch)


def test_pictures_in_patches_of_any_shape(tmp_path):
    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64, "d_kv": 16, "vocab_size": 1024, "decoder_start_token_id": 0}
    see = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "d_ff": 64, "d_kv": 16, "patch_embed_hidden_size": 48}
    config = transformers.Pix2StructConfig(text_config=text, vision_config=see | {"seq_len": 16})
    model = transformers.Pix2StructForConditionalGeneration(config).eval()
    folder = kept(model, tmp_path / "model")
    transformers.Pix2StructImageProcessorPil(patch_size={"height": 4, "width": 4}, max_patches=16).save_pretrained(folder)
    found = from_files(photos(tmp_path / "photos"), model, folder)
    assert found.taken["kind"] == "pictures" and found.test[0]["flattened_patches"].shape[1:] == (16, 50)
    with torch.no_grad():
        model(**found.test[0])
