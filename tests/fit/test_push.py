"""A result goes to the Hub whole, or one sentence says why not; the Hub here is one that writes down what it is asked."""

import json

import huggingface_hub
import pytest
from click.testing import CliRunner

import modicum
from modicum.cli.main import main
from modicum.core.errors import SettingError


@pytest.fixture
def result(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    body = {
        "format": "modicum-receipt", "version": 1, "model": {"name": "llama"}, "request": {"target": "modicum"}, "data": {"source": "text"},
        "seed": 0, "versions": {"modicum": "0.1.0"}, "bytes": {"actual": 1234}, "coverage": {}, "sites": [], "quality": {}, "verification": {},
        "events": [], "stages": {},
    }  # fmt: skip
    (out / "receipt.json").write_text(json.dumps(body))
    return out


class Hub:
    def __init__(self):
        self.asked = []

    def create_repo(self, repo, **words):
        self.asked.append((repo, words))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo}")

    def upload_folder(self, **words):
        self.asked.append(words)


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


def test_the_folder_goes_as_it_is(result, hub):
    assert modicum.push(result, "me/small", private=True) == "https://huggingface.co/me/small"
    (repo, words), sent = hub.asked
    assert repo == "me/small" and words == {"private": True, "exist_ok": True}
    assert sent == {"repo_id": "me/small", "folder_path": result, "commit_message": "llama in 1234 bytes, by modicum 0.1.0"}


def test_the_command_says_where_it_is(result, hub):
    done = CliRunner().invoke(main, ["push", str(result), "me/small"])
    assert done.exit_code == 0 and done.stdout == "https://huggingface.co/me/small\n"
    assert json.loads(CliRunner().invoke(main, ["push", str(result), "me/small", "--json"]).stdout)["address"].endswith("me/small")


@pytest.mark.parametrize("name", ["small", "a/b/c", "me/..", "me/sm all", ""])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(result, hub, name):
    with pytest.raises(SettingError, match="must be named as user/name"):
        modicum.push(result, name)
    assert hub.asked == []


def test_a_folder_that_is_no_result_is_refused(tmp_path, hub):
    with pytest.raises(SettingError, match=r"must be a folder that fit wrote, with its receipt\.json, has none"):
        modicum.push(tmp_path, "me/small")
    (tmp_path / "receipt.json").write_text("{}")
    with pytest.raises(SettingError, match="must be an object of format modicum-receipt"):
        modicum.push(tmp_path, "me/small")
    assert hub.asked == []


def test_what_the_hub_refuses_is_one_sentence(result, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    done = CliRunner().invoke(main, ["push", str(result), "me/small"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "the Hub must take me/small, does not" in done.stderr
