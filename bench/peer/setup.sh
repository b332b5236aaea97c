#!/usr/bin/env bash
# Makes .venv-llmcompressor in the repository root, where bench/peer/llmcompressor_run.py runs. README.md beside this file says why.
# PYTHON picks the interpreter; TORCH_ARGS goes to pip with torch, e.g. "--index-url https://download.pytorch.org/whl/cpu".
set -euo pipefail
cd "$(dirname "$0")/../.."

environment=.venv-llmcompressor
"${PYTHON:-python3.11}" -m venv "$environment"
pip="$environment/bin/python -m pip"

# torch goes first and is held by a constraint, so that llm-compressor's own requirement can neither replace nor upgrade it.
# shellcheck disable=SC2086
$pip install ${TORCH_ARGS:-} torch==2.13.0
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
echo "torch==2.13.0" > "$constraints"
$pip install --constraint "$constraints" llmcompressor==0.14.0.1

$pip check
"$environment/bin/python" - <<'CHECK'
import importlib.metadata

import llmcompressor
import torch

assert torch.__version__.split("+")[0] == "2.13.0", torch.__version__
for name in ("llmcompressor", "compressed-tensors", "torch", "transformers"):
    print(name, importlib.metadata.version(name))
CHECK
