"""A command that is killed at any moment is continued by the same command, to the same files (the short form stands beside the faults)."""

import pytest

# Places that a command is killed at: the two that measure go through all stages, the others through some.
PLACES = {
    "budget": 25,
    "measure": 25,
    "from": 8,
    "method": 8,
    "adapt": 12,
    "apply": 6,
    "revert": 6,
    "delta": 6,
    "merge": 6,
    "train": 8,
    "heal": 8,
    "edit": 6,
    "forget": 6,
    "learn": 6,
    "apply over": 6,
    "revert over": 6,
}


@pytest.mark.slow
@pytest.mark.parametrize("command, place", [(command, place) for command, count in PLACES.items() for place in range(count)])
def test_every_command_continues_wherever_it_is_killed(killed, command, place):
    killed(command, place, PLACES[command])


@pytest.mark.slow
@pytest.mark.parametrize("place", range(8))
def test_an_output_that_is_replaced_is_there_old_or_new(home, whole, place):
    """The last moments, in which folders change places."""
    words, uninterrupted, moments, _ = whole("method")
    one = home(*words, "--overwrite")
    one.out.mkdir()
    (one.out / "old").write_text("old")
    assert one.run(kill=len(moments) - place) == -9
    assert not one.out.exists() or (one.out / "old").exists() or one.files() == uninterrupted.files()
    assert one.run() == 0, one.said
    assert one.files() == uninterrupted.files()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, file",
    [
        (("measure", "--menu", "int4", "--search-time", "0"), "chain.json.new"),
        (("fit", "--method", "gptq bits=3"), "chain.json.new"),
        (("fit", "--method", "gptq bits=3 damping=1e-10"), "events.json.new"),
    ],
    ids=["measure", "fit", "damping"],
)
def test_what_a_killed_run_had_to_tell_is_told(home, starved_model, command, file):
    """Starved experts, and solves that took more damping than was asked for; killed before the last such file is written."""
    data = ("--data", starved_model.with_suffix(".txt"), "--samples", 1, "--tokens", 32, "--test-samples", 2, "--gradient-samples", 1)
    words = (command[0], starved_model, *data, "--target", "modicum", "--allow-fallback", *command[1:])
    whole, one = home(*words), home(*words)
    moments = [line for line in whole.trace() if line != "read"]
    assert one.run(kill=max(number for number, line in enumerate(moments, 1) if line.endswith(file))) == -9
    assert one.run() == 0, one.said
    assert one.files() == whole.files()
