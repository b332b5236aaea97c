"""What a report of a fault needs, and nothing of whose machine it is."""

import getpass
import json
import platform
import sys

import torch
from click.testing import CliRunner

from modicum import __version__
from modicum.cli.main import main
from modicum.core.memory import free_memory
from modicum.runtime import environment as room
from modicum.runtime.clock import Clock
from modicum.runtime.environment import environment


def told(*words):
    done = CliRunner().invoke(main, ["env", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_versions_processor_memory_and_threads_are_those_of_this_process():
    found = json.loads(told("--json"))
    assert found["modicum"]["version"] == __version__ and found["python"].endswith(platform.python_version())
    assert found["packages"]["torch"] == torch.__version__ and found["torch"]["threads"] == torch.get_num_threads()
    assert found["torch"]["capability"] == torch.backends.cpu.get_cpu_capability() and found["processor"]["usable"] >= 1
    assert 0.5 < found["memory"]["free"] / free_memory() < 2 and found["memory"]["free"] <= found["memory"]["total"]
    assert found["extras"]["search"]["pymoo"]


def test_nothing_tells_whose_machine_it_is(monkeypatch, tmp_path):
    secret = {
        "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_abcdefgh", "PYTHONPATH": "/home/somebody/code", "TORCH_LOGS": "somebody", "RANK": "0",
        "LD_PRELOAD": "C:\\Users\\somebody\\a.dll", "RAY_ADDRESS": "somebody.example.org:6379", "OMP_NUM_THREADS": "3", "LANG": "en_US.UTF-8",
    }  # fmt: skip
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    for text in (told(), told("--json")):
        assert not any(word in text for word in ("somebody", "hf_abcdefgh", "HF_TOKEN", str(tmp_path), sys.prefix))
        assert len(platform.node()) < 4 or platform.node() not in text
        assert getpass.getuser() in ("root", "user") or getpass.getuser() not in text
    said = environment()["variables"]
    assert said["HF_HOME"] == said["TORCH_LOGS"] == said["RAY_ADDRESS"] == "set"
    assert (said["OMP_NUM_THREADS"], said["RANK"], said["LANG"]) == ("3", "0", "en_US.UTF-8")


def test_times_that_earlier_runs_kept_are_told_as_rates(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment()["torch"]["rates"] == {}
    Clock(tmp_path / "modicum" / "clock.json").of("linear 512x256 on 64 in float32", lambda: 1e-3)
    assert environment()["torch"]["rates"] == {"linear 512x256 on 64 in float32": 2 * 512 * 256 * 64 / 1e-3 / 1e9}
    assert "16.8 billion operations a second" in told()


def test_a_torch_that_cannot_be_imported_is_told_and_the_rest_is_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = room._torch()
    assert found["error"].startswith("torch cannot be imported (ModuleNotFoundError")
    assert room._impersonal("OSError: '/home/somebody/lib.so': no") == "OSError: '…': no"


def test_a_limit_of_the_control_group_is_the_least_of_all_above(tmp_path, monkeypatch):
    from modicum.core import memory

    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(memory, "_OWN", own)
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    assert memory.group_limit() is None
    (tmp_path / "a" / "memory.max").write_text("4000\n")
    (tmp_path / "a" / "b" / "memory.max").write_text("max\n")
    assert memory.group_limit() == 4000
