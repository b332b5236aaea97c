"""What is not imported before it is needed."""

import json
import subprocess
import sys

from modicum.cli.main import main

HEAVY = {"torch", "transformers", "numpy", "scipy", "rich", "matplotlib", "jinja2", "safetensors", "filelock", "psutil", "yaml"}


def heavy_after(code):
    """Which of the heavy modules a fresh interpreter has imported after ``code``."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_alone_imports_nothing_heavy():
    assert not heavy_after("import modicum")


def test_help_imports_nothing_heavy():
    every = [["--help"], ["--version"], *([name, flag] for name in sorted(main.commands) for flag in ("--help", "-h"))]
    code = f"""
import sys
from modicum.cli.main import main
for words in {every}:
    main(words, standalone_mode=False)
    assert not {HEAVY} & set(sys.modules), words
"""
    assert not heavy_after(code)


# What is wrong about a command, and what is said of it.
SLIPS = [
    ("fit ./nowhere --bpw 4", "no such directory"),
    ("fit demo --bpw 4 --menu int4,gptq+bist=3", "gptq: has no setting 'bist'. Did you mean bits?"),
    ("fit demo --method gptt", "Did you mean gptq or gptvq?"),
    ("fit demo --bpw 4 --method gptq", "got budget and method"),
    ("fit demo", "got nothing"),
    ("fit demo --size 4", "must be a size"),
    ("fit demo --params 7", "Write 7%"),
    ("fit demo --bpw 4bits", "bpw: must be a number such as 4.5, got '4bits'."),
    ("fit demo --loss -1%", "loss: must be a share such as 60% or 0.6, got '-1%'."),
    ("fit demo --bpw 4 --ram 4XB", "must be a size"),
    ("fit demo --bpw 4 --data ./nothing.txt", "none is there"),
    ("fit demo --bpw 4 --samples 0", "samples: must be at least 1, got 0."),
    ("fit demo --bpw 4 --context 0", "context: must be at least 1, got 0."),
    ("fit demo --bpw 4 --search-time inf", "search_time: must be at least 0 and finite, got inf."),
    ("fit demo --bpw 4 --harm tracee", "harm 'tracee': is not known. Did you mean trace?"),
    ("fit demo --bpw 4 --target transformer", "Did you mean transformers?"),
    ("fit demo --bpw 4 --allocator hawk", "Did you mean hawq"),
    ("fit demo --bpw 4 --workers x", "workers: must be a number of processes or ray"),
    ("fit demo --plan ./nothing.json", "must be a readable JSON file"),
    ("fit --from ./nowhere --bpw 4", "must be a folder that measure wrote"),
    ("measure ./nowhere --out m", "no such directory"),
    ("measure demo --out m --tokens -1", "tokens: must be at least 1, got -1."),
    ("frontier ./nowhere", "must be a folder that measure wrote"),
    ("eval ./nowhere", "no such directory"),
    ("export ./nowhere --target modicum --out t", "must be a folder that fit wrote, is none"),
    ("compare ./nowhere", "at least two folders"),
    ("compare ./nowhere ./elsewhere", "is none. Check the path"),
    ("clean ./nowhere", "must be a folder to look through"),
    ("trim demo --to ./nothing.txt --out t", "none is there"),
    ("fit demo --bpw 4 --set lm_head:+bist=8", "'bist' is no setting of a method. Did you mean bits"),
    ("fit demo --bpw 4 --set lm_head:+bits=9", "must lie between 2 and 8, got 9"),
    ("fit demo --bpw 4 --set lm_head", "must have a pattern, a colon, a space"),
    ("measure demo --out m --set lm_head:+method=gptk", "Did you mean gptq"),
    ("fit demo --method eora", "eora must follow a step that changes the weight, none comes before it"),
    ("measure demo --out m --menu gptq+|+nearest", "nearest must come first, since it takes a weight as it is, and comes after gptq"),
    ("fit demo --bpw 4 --kv auto", "kv auto: must stand beside --memory"),
    ("fit demo --bpw 4 --kv fp8 --uniform", "kv: must not stand beside uniform"),
    ("fit demo --bpw 4 --heal 9 --heal-with norm", "Did you mean norms"),
    ("fit + --bpw 4 --out t", "model ' ': must be demo, a directory, or a Hugging Face id, is empty"),
    ("fit demo --bpw 4 -v --quiet", "one of them must be left out"),
    ("eval demo --log-file ./none/log", "must be writable, is not"),
    ("eval demo --samples 0", "samples: must be at least 1, got 0."),
    ("adapt ./nowhere --out t", "no such directory"),
    ("adapt demo --out t --method lroa", "Did you mean lora"),
    ("adapt demo --out t --params 7", "Write 7%"),
    ("adapt demo --out t --data ./nothing", "none is there"),
    ("adapt demo --out t --test-samples 0", "test_samples: must be at least 1, got 0."),
    ("train ./nowhere --out t", "no such directory"),
    ("train demo --out t --method rgil", "Did you mean rigl"),
    ("train demo --out t --target gguf", "must be modicum or transformers, got 'gguf'"),
    ("train demo --out t --data ./nothing", "none is there"),
    ("heal ./nowhere --out t", "no such directory"),
    ("heal demo --out t --method norm", "Did you mean norms"),
    ("edit ./nowhere --facts f --out t", "no such directory"),
    ("edit demo --facts ./nothing --out t", "none is there"),
    ("edit demo --facts ./nothing --method ultraedti --out t", "Did you mean ultraedit"),
    ("edit demo --facts ./nothing --method ultraedit+rounds=x --out t", "ultraedit.rounds: must be a whole number, got 'x'."),
    ("edit demo --facts ./nothing --batch -1 --out t", "batch: must be at least 0, got -1."),
    ("forget demo --forget ./n --retain ./m --out t", "none is there"),
    ("forget demo --forget ./n --retain ./m --method sdd --out t", "Did you mean ssd"),
    ("learn demo ./nothing --out t", "none is there"),
    ("learn demo ./nothing --method crl --out t", "Did you mean clr"),
    ("merge ./nowhere demo --out t", "no such directory"),
    ("merge demo ./nowhere --out t", "no such directory"),
    ("merge ./nothing.yaml --out t", "none is there"),
    ("merge demo demo --method teis --out t", "Did you mean ties"),
    ("merge demo demo --weights a --out t", "must be numbers by commas"),
    ("merge demo demo --trials 0 --out t", "trials: must be at least 1, got 0."),
    ("apply demo ./nowhere --out t", "must hold delta.json"),
    ("revert ./nowhere --out t", "must be a folder that modicum wrote"),
    ("delta ./nowhere --base demo --out t", "no such directory"),
    ("delta demo --base ./nowhere --out t", "no such directory"),
    ("show ./nowhere", "must hold delta.json"),
    ("densify ./nowhere --out t", "must be a folder that modicum wrote"),
    ("import ./nothing.gguf --out t", "must be a GGUF file, is none"),
    ("report ./nowhere", "must be a folder that modicum wrote, is none"),
    ("push ./nowhere a/b", "must be a folder that modicum wrote"),
]


def test_every_command_that_works_is_among_those_with_slips():
    without = {"list", "explain", "cite", "env", "completion"}  # what they are given is a method, a shell, or nothing
    assert {words.split()[0] for words, _ in SLIPS} == main.commands.keys() - without


def test_what_needs_no_model_is_refused_before_anything_heavy_is_imported():
    code = f"""
import contextlib, io, sys
from modicum.cli.main import main
for words, said in {SLIPS!r}:
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            code = main([word.replace("+", " ") for word in words.split(" ")], standalone_mode=False)
        except SystemExit as left:
            code = left.code
    line = told.getvalue()
    assert code == 2 and line.startswith("modicum: ") and line.count("\\n") == 1 and said in line, (words, code, line)
    assert not {HEAVY!r} & sys.modules.keys(), (words, {HEAVY!r} & sys.modules.keys())
"""
    assert not heavy_after(code)


def test_a_file_of_settings_is_refused_with_no_more_than_its_reader(tmp_path):
    (tmp_path / "run.yaml").write_text("sampels: 3")
    (tmp_path / "run.json").write_text('{"samples": 0, "model": "demo", "bpw": 4}')
    code = f"""
import contextlib, io, sys
from modicum.cli.main import main
for name, said in (("run.yaml", "Did you mean samples"), ("run.json", "samples: must be at least 1, got 0."), ("none", "must be readable")):
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            code = main(["fit", "--config", f"{tmp_path}/{{name}}"], standalone_mode=False)
        except SystemExit as left:
            assert left.code == 2
    assert said in told.getvalue(), told.getvalue()
"""
    assert heavy_after(code) == {"yaml"}


def test_an_output_that_exists_is_refused_before_anything_heavy_is_imported(tmp_path):
    parts = ("verification", "events", "stages", "versions", "bytes", "coverage", "sites", "quality")
    receipt = {"format": "modicum-receipt", "version": 1, "model": {"name": "demo"}, "request": {"target": "modicum"}, "seed": 0}
    receipt |= {"data": {"source": "shipped"}, **dict.fromkeys(parts)}
    (tmp_path / "receipt.json").write_text(json.dumps(receipt))
    (tmp_path / "plan.json").write_text(json.dumps({"format": "modicum-plan", "version": 1, "target": "modicum"}))
    (tmp_path / "out").mkdir()
    words = ["export", str(tmp_path), "--out", str(tmp_path / "out"), "--target"]
    for target, said in (("modicum", "exists already"), ("modicun", "Did you mean modicum?")):
        code = f"""
import contextlib, io
from modicum.cli.main import main
with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.suppress(SystemExit):
    main({[*words, target]!r}, standalone_mode=False)
assert {said!r} in told.getvalue(), told.getvalue()
"""
        assert not heavy_after(code)


def test_a_measurement_taken_with_other_settings_is_refused_before_anything_heavy_is_imported(tmp_path):
    parts = {"model": {"name": "demo"}, "settings": {"samples": 8}, **dict.fromkeys(("targets", "menu", "data", "stages", "hash"))}
    (tmp_path / "measurement.json").write_text(json.dumps({"format": "modicum-measurement", "version": 1, **parts}))
    words = ["fit", "--from", str(tmp_path), "--bpw", "4", "--samples", "3"]
    code = f"""
import contextlib, io
from modicum.cli.main import main
with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.suppress(SystemExit):
    main({words!r}, standalone_mode=False)
assert "samples: was 8 when {tmp_path} was measured, cannot be 3 now" in told.getvalue(), told.getvalue()
"""
    assert not heavy_after(code)


def test_what_is_heavy_shows():
    assert "torch" in heavy_after("import modicum\nmodicum.load")
