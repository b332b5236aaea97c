"""The model card beside a result: read by the hub's own reader, right about the original, and never silent about what it left out."""

import json

import pytest
from huggingface_hub import ModelCard

import modicum
from modicum.core.plan import Plan
from modicum.fit.card import card
from modicum.testing import zoo

HEAD = {
    "license": "llama3",
    "license_link": "LICENSE",
    "language": ["en", "de"],
    "datasets": ["owner/words"],
    "library_name": "other",
    "thumbnail": "x.png",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint with a card that says its licence, and figures that are its own."""
    place, (model, _) = tmp_path_factory.mktemp("source") / "llama", zoo.build("llama")
    model.save_pretrained(place)
    lines = [*(f"{name}: {json.dumps(value)}" for name, value in HEAD.items()), "tags: [chat]"]
    (place / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n# A llama\n\nIt speaks.\n")
    return place


@pytest.fixture(scope="module")
def receipts(source, tmp_path_factory):
    """Results for two targets of one plan, by target."""
    out, (_, batches) = tmp_path_factory.mktemp("out"), zoo.build("llama")
    plan = {"lm_head.weight": "nearest bits=4 group=16"}
    return {target: modicum.fit(source, plan=Plan(target, plan), data=batches, out=out / target) for target in ("transformers", "modicum")}


@pytest.mark.parametrize("target", ["transformers", "modicum"])
def test_every_target_has_a_card_that_the_hub_reads(receipts, target):
    result = receipts[target]
    found = ModelCard.load(result.out / "README.md")
    data, receipt = found.data, result.receipt
    assert (data.license, data.license_link, data.language, data.datasets) == ("llama3", "LICENSE", ["en", "de"], ["owner/words"])
    assert (
        data.library_name == target and data.pipeline_tag == "text-generation" and data.base_model is None
    )  # a folder is no id of the hub
    assert data.tags == ["chat", "modicum", *(["compressed-tensors"] if target == "transformers" else [])]
    assert data.quantization == {"bits_per_weight": round(receipt["bytes"]["bits_per_weight"], 4), "methods": ["nearest"]}
    values = {each.metric_type: each.metric_value for each in data.eval_results}
    assert values == {"divergence": receipt["quality"]["mean"], "perplexity": receipt["quality"]["perplexity"]}
    assert "thumbnail" not in data.to_dict()


def test_a_card_says_what_was_changed_and_how_it_loads(receipts):
    text = (receipts["transformers"].out / "README.md").read_text()
    assert "`nearest bits=4 group=16` on 1 part of the model" in text and "LlamaForCausalLM.from_pretrained" in text
    told = receipts["transformers"].receipt["verification"]["dequantize=True"]
    assert f"With `dequantize=True`: {'the same model' if told['result'] == 'the same' else ''}" in text
    assert "It speaks." in text.partition("## The original's card")[2] and "`library_name`, `thumbnail` are of the original alone" in text
    assert "modicum.load" in (receipts["modicum"].out / "README.md").read_text()


def test_the_card_of_the_original_is_left_as_it_is_and_counts_for_no_budget(receipts, source):
    assert (source / "README.md").read_text().endswith("# A llama\n\nIt speaks.\n") and "modicum" not in (source / "README.md").read_text()
    receipt = receipts["transformers"].receipt
    assert receipt["bytes"]["actual"] == sum(file["bytes"] for file in receipt["bytes"]["files"].values())
    assert "README.md" not in receipt["bytes"]["files"] and receipt["events"] == []


def test_a_model_of_the_hub_is_named_as_the_base(receipts, tmp_path):
    receipt = {**receipts["transformers"].receipt, "model": {**receipts["transformers"].receipt["model"], "name": "owner/name"}}
    text, events = card(receipt, None, causal=True)
    data = ModelCard(text).data
    assert data.base_model == "owner/name" and data.base_model_relation == "quantized" and data.license is None and events == []
    assert "[owner/name](https://huggingface.co/owner/name)" in text


@pytest.mark.parametrize(
    "content, said",
    [("---\n- a\n- b\n---\nx", "is no table"), ("---\na: [\n---\nx", "cannot be read"), (b"\xff\xfe\xff", "cannot be read")],
)
def test_a_card_that_cannot_be_read_is_told(receipts, tmp_path, content, said):
    (tmp_path / "README.md").write_bytes(content if isinstance(content, bytes) else content.encode())
    text, events = card(receipts["transformers"].receipt, tmp_path, causal=False)
    assert len(events) == 1 and said in events[0] and "licence" in events[0]
    assert ModelCard(text).data.license is None and ModelCard(text).data.pipeline_tag is None


def test_a_file_for_llama_cpp_says_who_reads_it(receipts):
    known = receipts["transformers"].receipt
    loads = {"loader": "modicum.load", "transformers": "cannot read it (no such type)"}
    text, _ = card({**known, "request": {**known["request"], "target": "gguf"}, "verification": loads}, None, causal=True)
    assert ModelCard(text).data.library_name == "gguf" and "DIR/model.gguf" in text
    assert "- Read by transformers: cannot read it (no such type)" in text and "compressed-tensors" not in text


def test_a_module_of_ones_own_must_be_brought(receipts):
    text, _ = card(receipts["modicum"].receipt, None, causal=False, known=False)
    assert 'modicum.load("DIR", into=module)' in text
