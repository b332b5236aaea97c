"""What a command tells: nothing with ``--quiet``, more with ``--verbose``, all of it in a file, and an exit code that means the same everywhere."""

import logging
import warnings
from unittest import mock

import pytest
from click.testing import CliRunner

from modicum.cli.codes import CODES
from modicum.cli.main import main
from modicum.core.errors import ModelError
from modicum.core.log import LOG
from modicum.models.quiet import hushed

SHOWING = ["fit", "measure", "frontier", "eval", "export", "trim"]


def run(*words, **settings):
    return CliRunner().invoke(main, [str(word) for word in words], prog_name="modicum", **settings)


@pytest.fixture
def at_work(monkeypatch):
    """Puts something in the place of the work of ``eval``."""

    def put(work):
        monkeypatch.setattr("modicum.receipt.evaluate", lambda *_, **__: work())

    return put


def telling():
    LOG.info("a decision")
    warnings.warn("an old name", FutureWarning, stacklevel=1)
    logging.getLogger("transformers").warning("a notice of theirs")
    raise ModelError("it: stops here.")


def test_a_run_tells_nothing_of_it_unless_asked(at_work):
    at_work(telling)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run("eval", "demo", "--quiet")
    assert result.stderr == "modicum: it: stops here.\n"


def test_verbose_tells_decisions_and_warnings_of_libraries(at_work, tmp_path):
    at_work(telling)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = run("eval", "demo", "-v", "--log-file", tmp_path / "log")
    log = (tmp_path / "log").read_text()
    assert result.exit_code == 2 and result.stderr.splitlines()[-1] == "modicum: it: stops here."
    for text in (result.stderr, log):
        assert "a decision" in text and "an old name" in text and "a notice of theirs" in text and "it: stops here." in text
    assert "Traceback" not in log + result.stderr and f" eval demo -v --log-file {tmp_path / 'log'}" in log


def test_a_file_keeps_the_traceback_of_a_fault_and_what_was_there(at_work, tmp_path):
    at_work(lambda: 1 // 0)
    (tmp_path / "log").write_text("before\n")
    assert run("eval", "demo", "--quiet", "--log-file", tmp_path / "log").exit_code == 1
    log = (tmp_path / "log").read_text()
    assert log.startswith("before\n") and "Traceback" in log and "ZeroDivisionError" in log and "ended by ZeroDivisionError" in log


def test_afterwards_nobody_listens(at_work, tmp_path):
    at_work(telling)
    with hushed():  # their own handlers are there
        pass
    state = lambda: [(set(logger.handlers), logger.level) for logger in (LOG, logging.getLogger("transformers"))]
    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        run("eval", "demo", "-v", "--log-file", tmp_path / "log")
    assert state() == before
    with hushed():
        assert logging.getLogger("transformers").level == logging.ERROR


def test_a_file_that_cannot_be_written_is_refused_before_any_work(at_work, tmp_path):
    at_work(lambda: pytest.fail("work began"))
    for path in (tmp_path, tmp_path / "none" / "log"):
        result = run("eval", "demo", "--log-file", path)
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 2 and line.startswith(f"modicum: {path}: must be writable, is not (") and line.endswith("--log-file.")


def test_quiet_and_verbose_exclude_each_other():
    result = run("fit", "demo", "--bpw", "4", "-v", "--quiet")
    assert (result.exit_code, result.stderr) == (2, "modicum: --quiet and --verbose: one of them must be left out, both came. Pass one.\n")


def test_every_command_that_works_for_long_tells_alike():
    for name in SHOWING:
        assert {"--quiet", "--verbose", "--log-file", "--json"} <= {word for option in main.commands[name].params for word in option.opts}


# Exit codes

WORDS = {
    "fit": ["demo", "--bpw", "4"], "measure": ["demo", "--out", "m"], "frontier": ["m"], "eval": ["demo"],
    "export": ["o", "--target", "modicum", "--out", "x"], "trim": ["demo", "--to", "t", "--out", "x"], "list": [], "explain": ["gptq"],
    "cite": ["gptq"], "env": [], "compare": ["a", "b"], "clean": ["."], "completion": ["bash"], "densify": ["o", "--out", "x"],
    "import": ["m.gguf", "--out", "x"], "report": ["a", "b"], "push": ["o", "user/name"],
    "heal": ["o", "--out", "x"],
    "adapt": ["demo", "--out", "x"], "apply": ["demo", "d", "--out", "x"], "revert": ["a", "--out", "x"], "show": ["d"],
    "train": ["demo", "--out", "x"],
    "edit": ["demo", "--facts", "f", "--out", "x"],
    "learn": ["demo", "t", "--out", "x"],
    "forget": ["demo", "--forget", "f", "--retain", "r", "--out", "x"],
    "delta": ["t", "--base", "demo", "--out", "x"],
    "merge": ["demo", "demo", "--out", "x"],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(main.commands))
def test_exit_codes_are_the_same_in_every_command(name, monkeypatch):
    command = main.commands[name]
    codes = []
    for outcome in (None, KeyboardInterrupt(), ModelError("it: is wrong."), RuntimeError("a bug")):
        monkeypatch.setattr(command, "callback", mock.Mock(side_effect=outcome))
        result = run(name, *WORDS[name])
        codes.append(result.exit_code)
        assert len(result.stderr.splitlines()) == (outcome is not None and codes[-1] != 1)
    assert codes == [0, 130, 2, 1] and set(codes) == {code for code, _, _ in CODES}
    assert run(name, "--no-such-setting").exit_code == 2 and run(name, "--help").exit_code == 0
