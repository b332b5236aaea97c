"""What stands beside the weights: files, folders, generation settings, and a config that older readers understand."""

import json

import pytest
import torch
import transformers

from modicum.export.companions import copy_companions, save_config, save_generation
from modicum.models.open import open_model
from modicum.testing import zoo


@pytest.fixture
def source(tmp_path):
    model, _ = zoo.build("llama")
    model.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def test_folders_go_along_and_other_models_do_not(source, tmp_path):
    put(source, "additional_chat_templates/tool.jinja", "1_Pooling/config.json", "a/b/c.txt", ".git/HEAD", "a/.hidden")
    put(
        source,
        "2_Dense/model.safetensors",
        "onnx/model.onnx",
        "onnx/config.json",
        "checkpoint-5/model.safetensors",
        "checkpoint-5/config.json",
    )
    (source / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]))
    put(tmp_path, "secret.txt")
    (source / "1_Pooling" / "link.txt").symlink_to(tmp_path / "secret.txt")
    out = source / "out"
    out.mkdir()
    copy_companions(source, out)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == {
        *("additional_chat_templates/tool.jinja", "1_Pooling/config.json", "a/b/c.txt", "2_Dense/model.safetensors"),
        *("modules.json", "generation_config.json"),
    }


def test_generation_settings_of_an_old_config(source, tmp_path):
    (source / "generation_config.json").unlink()
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 33, "do_sample": True, "top_k": 7}))
    model = open_model(source)
    (tmp_path / "out").mkdir()
    save_config(model, model.config, tmp_path / "out")
    save_generation(model, tmp_path / "out")
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.max_length, found.do_sample, found.top_k) == (33, True, 7)


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}])
def test_positions_and_dtype_in_both_spellings(rope, tmp_path):
    config = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=2, rope_parameters={"rope_theta": 5e5, **rope}, dtype=torch.bfloat16
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = open_model_of(transformers.LlamaForCausalLM(config))
    save_config(model, config, tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    assert (body["rope_theta"], body["torch_dtype"]) == (5e5, "bfloat16")
    assert body.get("rope_scaling") == (None if rope["rope_type"] == "default" else rope)
    assert transformers.LlamaConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


def open_model_of(module):
    from modicum.models.model import Model

    return Model(module, None, {}, {})
