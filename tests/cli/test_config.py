"""Settings in a file: the same names as on the command line, which counts more; and the file beside every receipt, which gives the same again."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from tests.cli.test_told import WORDS

import modicum
from modicum.cli.generated import CONFIG
from modicum.cli.main import main
from modicum.core.config import NAME, Written, of_settings, read_config, write_asked, written
from modicum.core.errors import SettingError
from modicum.core.settings import hints
from modicum.fit.request import Request
from modicum.measure.asked import asked
from modicum.measure.settings import Settings
from modicum.models.located import DEMO
from modicum.testing import zoo

MENU = "nearest bits=4,nearest bits=8"
GIVEN = ("--samples", "4", "--tokens", "16", "--test-samples", "4", "--menu", MENU, "--harm", "error", "--search-time", "0")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a model and a text."""
    path = tmp_path_factory.mktemp("models")
    zoo.tied_twin()[0].save_pretrained(path / "twin")
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, path / "twin")
    (path / "text.txt").write_text("".join(f"def add_{place}(one, two):\n    return one + two * {place}\n\n" for place in range(400)))
    return path


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="modicum", catch_exceptions=False)


def refused(*words):
    result = run(*words)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith("modicum: ") and line.endswith((".", "?"))
    return line


def config(tmp_path, body, name="run.yaml"):
    (tmp_path / name).write_text(body if isinstance(body, str) else yaml.safe_dump(body))
    return tmp_path / name


@pytest.fixture(scope="module")
def first(source):
    """What a run wrote that told all it could, on stderr and in a file."""
    words = (*GIVEN, "--keep", "*layers.0.self_attn.q_proj", "--target", "modicum", "--data", source / "text.txt")
    told = ("-v", "--log-file", source / "log")
    result = run("fit", source / "twin", "--bpw", "9", *words, *told, "--out", source / "one")
    assert result.exit_code == 0, result.stderr
    (source / "shown").write_text(result.stderr)
    return source / "one"


def test_the_file_beside_the_receipt_gives_the_same_bytes(source, first, tmp_path):
    result = run("fit", source / "twin", "--config", first / NAME, "--quiet", "--out", tmp_path / "two")
    assert result.exit_code == 0, result.stderr
    for name in ("model.safetensors", "plan.json", "modicum.json", NAME):
        assert (tmp_path / "two" / name).read_bytes() == (first / name).read_bytes()
    one, two = (json.loads((out / "receipt.json").read_text()) for out in (first, tmp_path / "two"))
    assert one["request"] == two["request"] and one["quality"] == two["quality"]


def test_it_holds_what_was_asked_and_no_more(source, first):
    assert yaml.safe_load((first / NAME).read_text()) == {
        "model": str(source / "twin"), "data": str(source / "text.txt"), "bpw": 9.0, "target": "modicum", "samples": 4, "tokens": 16,
        "test_samples": 4, "menu": MENU.split(","), "keep": ["*layers.0.self_attn.q_proj"], "harm": "error",
        "search_time": 0.0,
    }  # fmt: skip


def test_an_output_with_it_is_replaced_loaded_and_judged_as_before(source, first):
    again = run("fit", "--config", first / NAME, "--dry-run", "--overwrite", "--out", first)
    assert again.exit_code == 0, again.stderr
    assert modicum.load(first) is not None
    from modicum.core.output import require_ours

    require_ours(first, "--out")


def test_what_the_command_line_says_counts_more(source, first):
    words = ("fit", "--config", first / NAME, "--dry-run", "--json")
    assert json.loads(run(*words).stdout)["measured"] is False
    told = json.loads(run(*words, "--tokens", "8", "--menu", "int3").stdout)
    assert {option for site in told["sites"] for option in site["options"]} == {"keep", "gptq bits=3", "hqq bits=3"}
    assert "exactly one" not in run(*words, "--method", "nearest bits=4").stderr  # another way to say what is wanted
    assert "budget 1.000 kB" in json.loads(run(*words, "--bpw", "4", "--size", "1kB").stdout)["why"]


def test_a_measurement_has_one_too_and_python_reads_it(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=64, max_position_embeddings=32)).eval()
    batches = [{"input_ids": torch.randint(3, 64, (2, 16))} for _ in range(3)]
    settings = {"menu": "int4", "harm": "error", "search_time": 0.0, "target": "modicum", "output": "logits", "seed": 3}
    modicum.measure(module, data=batches, out=tmp_path / "one", **settings)
    said = yaml.safe_load((tmp_path / "one" / NAME).read_text())
    assert said == settings | {"menu": ["gptq bits=4"], "given_in_python": ["data"]}
    with pytest.raises(SettingError, match=r"run.yaml: data was given from Python, which no file holds\. Give it again\."):
        modicum.measure(module, config=tmp_path / "one" / NAME, out=tmp_path / "two")
    result = modicum.fit(module, "20bpw", measured=tmp_path / "one", out=tmp_path / "fit")
    again = modicum.fit(module, config=tmp_path / "fit" / NAME, out=tmp_path / "again")
    assert (result.out / "model.safetensors").read_bytes() == (again.out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        {"size": "4.5MB", "memory": 12345, "speed": "1.30x", "latency": "20us", "loss": "130%", "params": "33.3%"},
        {"macs": "33.3%"},
        {"macs": "5G"},
        {"macs": 1234567},
        {"bpw": 4.1, "ram": "4GiB", "search_time": 1e-5, "output": ("a", "b"), "classes": -1, "text_column": "1", "keep": ["no", "~"]},
        {"method": "gptq bits=3 | eora rank=8", "workers": "2", "device": "cpu", "curvature": True, "group": 0},
    ],
)
def test_every_setting_is_read_as_it_was_written(tmp_path, words):
    """Numbers to the last bit, and texts that YAML would take for something else."""
    from modicum.core.budget import Budget
    from modicum.core.config import write_config
    from modicum.core.option import Option
    from modicum.measure.settings import common

    def request(words):
        words = dict(words)
        budget = Budget.of(**{name: words.pop(name, None) for name in Budget.__dataclass_fields__})
        method = words.pop("method", None)
        return Request(budget=budget, method=Option.parse(method) if method else None, **common(**words))

    before = request(words)
    write_config(tmp_path / NAME, asked(before, model=None, data=None))
    assert request(read_config(tmp_path / NAME, of_settings(Budget, Request))) == before


def test_yaml_and_json_say_the_same(tmp_path):
    known = of_settings(Settings)
    body = {
        "samples": 7,
        "search_time": 2.5,
        "keep": ["a", "b"],
        "overwrite": True,
        "menu": ["int4", "int8"],
        "data": None,
        "text-column": "x",
    }
    (tmp_path / "run.json").write_text(json.dumps(body, indent="\t"))
    found = read_config(config(tmp_path, body), known)
    assert found == read_config(tmp_path / "run.json", known)
    assert found == {"samples": 7, "search_time": 2.5, "keep": ["a", "b"], "overwrite": True, "menu": "int4,int8", "text_column": "x"}


@pytest.mark.parametrize(
    "body, said",
    [
        ("sampels: 3", "has no setting 'sampels'. Did you mean samples"),
        ("samples: many", "samples must be a whole number, got 'many'."),
        ("samples: [1, 2]", "samples must be a whole number, got a list."),
        ("samples: {a: 1}", "samples must be a whole number, got a table."),
        ("samples: 1:30", "samples must be a whole number, got '1:30'."),
        ("data: [a, b]", "data must be a text, got a list."),
        ("curvature: 2", "curvature must be true or false, got '2'."),
        ("keep: {a: b}", "keep must be a text or a list of texts, got a table."),
        ("samples: 1\nsamples: 2", "samples must be given once, comes twice."),
        ("trust_remote_code: true", "pass --trust-remote-code."),
        ("- samples", "it is no table of settings"),
        ("samples: &a 3\ntokens: *a", "a part stands for another"),
        ("samples: [", "line 1"),
        ("[" * 50000, "nested too deeply"),
        ("samples: \x00", "must be readable YAML or JSON"),
        ("1: 2", "has no setting '1'"),
        ("{[1]: 2}", "a name must be a text"),
    ],
)
def test_what_a_file_cannot_say_is_told_in_one_sentence(tmp_path, body, said):
    line = refused("fit", "demo", "--bpw", "4", "--config", config(tmp_path, body))
    assert str(tmp_path / NAME) in line and said in line


def test_a_file_that_is_none_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml", "/dev/null"):
        assert f"config {path}: must be readable YAML or JSON" in refused("fit", "demo", "--config", path)


def test_other_commands_read_their_own_settings(tmp_path):
    body = {"to": str(tmp_path / "none.txt"), "out": str(tmp_path / "t"), "size": 300}
    assert "none is there" in refused("trim", "demo", "--config", config(tmp_path, body))
    assert "has no setting 'bpw'" in refused("measure", "demo", "--config", config(tmp_path, {"bpw": 4}))
    body = {"directory": "./nowhere", "reference": "demo", "samples": 2}
    assert "nowhere" in refused("eval", "--config", config(tmp_path, body))
    assert "samples must be a whole number" in refused("eval", "demo", "--config", config(tmp_path, {"samples": "x"}))
    assert refused("frontier", "--config", config(tmp_path, {"directory": "./nowhere", "measured": 3}))


# Settings beside each command's own words, of every kind that its options have.
MORE = {
    "adapt": {"params": "1%", "steps": 3, "rate": 0.5, "tokens": 8}, "train": {"size": "1MB", "baselines": True, "seed": 3},
    "heal": {"method": "norms", "steps": 2}, "edit": {"batch": 2, "method": "memit"}, "forget": {"goal": 0.5, "no_relapse": True},
    "learn": {"samples": 4, "tokens": 8}, "merge": {"weights": "0.5", "match": True, "trials": 3}, "delta": {"rank": 2, "format": "peft"},
    "apply": {"scale": 0.25, "no_revert": True}, "export": {"dense": True}, "trim": {"size": 300}, "list": {"family": "prune"},
    "eval": {"samples": 3, "seed": 2}, "frontier": {"points": 5},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MORE))
def test_every_command_reads_its_settings_from_a_file_and_tells_them_again(monkeypatch, tmp_path, name):
    """What a command is told in words, told by a file, and told by what it wrote of the words: all the same."""
    seen = []

    def work(**given):
        write_asked(tmp_path)
        seen.append({key: value for key, value in given.items() if key not in ("out", "quiet", "as_json")})

    monkeypatch.setattr(main.commands[name], "callback", work)
    flags = [
        word for key, value in MORE[name].items() for word in (f"--{key.replace('_', '-')}", *(() if value is True else (str(value),)))
    ]
    out = [word for word in ("--out", "x") if "--out" in WORDS[name]]
    for words in (
        (*WORDS[name], *flags),
        (*WORDS[name], "--config", config(tmp_path, MORE[name], "own.yaml")),
        (*out, "--config", tmp_path / NAME),
    ):
        assert run(name, *words).exit_code == 0
    assert seen[0] == seen[1] == seen[2] and seen[0] != {}


def test_commands_with_settings_are_all_among_them():
    assert {name for name, command in main.commands.items() if CONFIG in command.params} == MORE.keys() | {"fit", "measure"}


def test_a_receipt_of_another_command_has_one_too(source, tmp_path):
    (tmp_path / "f.jsonl").write_text('{"prompt": "def", "target": " main"}')
    words = ("edit", source / "twin", "--facts", tmp_path / "f.jsonl", "--samples", "2", "--tokens", "16", "--test-samples", "2", "--quiet")
    assert run(*words, "--out", tmp_path / "one").exit_code == 0
    said = yaml.safe_load((tmp_path / "one" / NAME).read_text())
    assert said == {"model": str(source / "twin"), "facts": str(tmp_path / "f.jsonl"), "samples": 2, "tokens": 16, "test_samples": 2}
    assert run("edit", "--config", tmp_path / "one" / NAME, "--quiet", "--out", tmp_path / "two").exit_code == 0
    one, two = ((tmp_path / name / "delta.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_settings_that_are_lists_say_so():
    known = of_settings(Settings)
    assert known["keep"] == Written(list, several=True) and known["menu"] == Written(str, several=True) and known["samples"] == Written(int)


def test_verbose_tells_stages_decisions_sites_and_events(source, first):
    shown, log = (source / "shown").read_text(), (source / "log").read_text()
    receipt = json.loads((first / "receipt.json").read_text())
    told = [f"{site['site']}: {site['option']}, {site['bytes']} bytes of {site['original_bytes']}" for site in receipt["sites"]]
    told += (
        [f"{stage}: " for stage in receipt["stages"]] + receipt["events"] + ["for target modicum; computed in", "chosen by auto: allocator"]
    )
    told += [
        "model.layers.0.mlp.down_proj.weight: harm of each option: keep 0, nearest bits=4 ",
        f"modicum {modicum.__version__}: fit {source / 'twin'} --bpw 9",
    ]
    assert len(receipt["sites"]) > 20 and receipt["events"]
    for line in told:
        assert line in shown and line in log, line
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO modicum: modicum .*", log.splitlines()[0])
    assert re.fullmatch(r"\[\d+ s\] modicum .*", shown.splitlines()[0])


def test_settings_that_are_numbers_are_written_as_numbers():
    for field in dataclasses.fields(Request):
        kinds = getattr(hints(Request)[field.name], "__args__", (hints(Request)[field.name],))
        if float in kinds and field.metadata.get("group"):
            assert written(field, hints(Request)[field.name]).kind is float, field.name
