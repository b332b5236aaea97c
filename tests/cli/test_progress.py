"""Progress on stderr: a bar in a terminal, lines in a log, nothing where nothing was asked for."""

import io
import re
import time

import pytest
from click.testing import CliRunner

from modicum.cli.main import main
from modicum.cli.progress import SAID, Bar, Lines, Progress, lasting, progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress() as bar:
        assert isinstance(bar, Bar)
        bar.step()
        for stage in ("measure", "assemble"):
            bar.start(stage, 3)
            bar.step()
        bar.say("chosen: 3.672 MB [of 4]")
    assert SAID["assemble"] in terminal.getvalue() and "chosen: 3.672 MB [of 4]" in terminal.getvalue()


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_quiet_is_quiet_everywhere(monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", stream)
    with progress(quiet=True) as shown:
        shown.start("measure", 3)
        shown.step()
        shown.say("chosen")
    assert type(shown) is Progress and stream.getvalue() == ""


def lines(period, work):
    """What a log says of some work."""
    stream = io.StringIO()
    with Lines(period=period, stream=stream) as shown:
        work(shown)
    return stream.getvalue().splitlines()


def test_a_log_has_a_line_for_each_stage_as_it_begins():
    def work(shown):
        shown.start("measure", 24)
        for _ in range(24):
            shown.step()
        shown.say("chosen: 3.672 MB")
        shown.start("export", 1)

    assert lines(60, work) == ["[0 s] measuring every option on every layer, 24 steps", "[0 s] chosen: 3.672 MB", "[0 s] writing"]


def test_nothing_is_said_of_a_refusal_but_the_refusal():
    assert lines(60, lambda shown: None) == []


def test_a_long_stage_tells_the_share_done_and_the_time_left():
    def work(shown):
        time.sleep(0.5)
        shown.start("measure", 4)
        shown.step()
        time.sleep(0.5)
        shown.start("choose", 1)
        time.sleep(0.5)

    said = lines(0.1, work)
    assert re.fullmatch(r"\[0 s\] opening the model: at work for 0 s, the time left is not known yet", said[0])
    assert any(re.fullmatch(r"\[1 s\] measuring .*: 25% done \(1 of 4 steps\), about \d s left in this stage", line) for line in said)
    assert any(line.startswith("[1 s] choosing: at work for") for line in said)


def test_the_time_left_is_that_of_the_steps_so_far(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("modicum.cli.progress.time.monotonic", lambda: now[0])
    shown = Lines(stream=io.StringIO())
    shown.start("measure", 10)
    for _ in range(4):
        shown.step()
    now[0] += 120
    assert shown._far() == "40% done (4 of 10 steps), about 3 min 0 s left in this stage"


@pytest.mark.parametrize("seconds, said", [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_times_are_for_people(seconds, said):
    assert lasting(seconds) == said


@pytest.mark.parametrize("command", ["fit", "measure", "frontier", "eval", "export", "trim"])
def test_every_long_command_can_be_quiet(command):
    assert "--quiet" in CliRunner().invoke(main, [command, "--help"]).stdout


@pytest.mark.parametrize("quiet", [True, False])
def test_eval_and_trim_say_how_far_they_are(tmp_path, quiet):
    (tmp_path / "corpus.txt").write_text("def add(one, two):\n    return one + two\n" * 50)
    flags = ["--quiet"] if quiet else []
    judged = CliRunner().invoke(main, ["eval", "demo", "--samples", "2", "--tokens", "16", *flags])
    trimmed = CliRunner().invoke(main, ["trim", "demo", "--to", str(tmp_path / "corpus.txt"), "--out", str(tmp_path / "out"), *flags])
    assert judged.exit_code == trimmed.exit_code == 0
    assert ("judging on test data" in judged.stderr) is not quiet
    assert ("comparing with the original" in trimmed.stderr) is not quiet
    assert not quiet or judged.stderr + trimmed.stderr == ""
