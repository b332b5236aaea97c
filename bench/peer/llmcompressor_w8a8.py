"""Compress a causal language model with llm-compressor to weights and inputs in few bits, and save it as runtimes read it.

    python bench/peer/llmcompressor_w8a8.py --model DIR --tokens tokens.safetensors --recipe recipe.json --out DIR

Its recipes: SmoothQuant then GPTQ for whole numbers of eight bits (`{"format": "int8", "smooth": 0.8}`; without `smooth` GPTQ alone), FP8_DYNAMIC for
floats (`{"format": "fp8"}`); in four bits GPTQ under W4A4 (`int4`, groups of 128) and MXFP4. Inputs have a scale per token, in MXFP4 per 32 columns.
The environment, the tokens and the checks of arguments are those of `llmcompressor_run.py`.
"""

import json
import time
from pathlib import Path
from typing import Any

from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor_run import PeerError, Recipe, compress, load_model, make_resident, parse_arguments, read_tokens, require, versions

SCHEMES = {"int8": "W8A8", "int4": "W4A4", "fp8": "FP8_DYNAMIC", "mxfp4": "MXFP4"}


def modifiers(format: str, smooth: float | None, damping: float) -> list[Any]:
    require(format in SCHEMES, f"format must be one of {sorted(SCHEMES)}, it is {format!r}")
    before = [] if smooth is None else [SmoothQuantModifier(smoothing_strength=smooth)]
    common = {"targets": "Linear", "scheme": SCHEMES[format], "ignore": ["lm_head"]}
    if format.startswith("int"):
        return [*before, GPTQModifier(**common, dampening_frac=damping)]
    return [*before, QuantizationModifier(**common)]


def run(model_path: Path, tokens_path: Path, recipe_path: Path, out: Path) -> None:
    given = json.loads(recipe_path.read_text())
    recipe = Recipe(method="gptq", bits=8, group=None, dtype="bfloat16", batch_size=8)
    steps = modifiers(given["format"], given.get("smooth"), recipe.damping)
    model = load_model(model_path, recipe)
    tokens = read_tokens(tokens_path, recipe, model.config.vocab_size)
    make_resident(model)
    start = time.perf_counter()
    compress(model, tokens, steps, recipe)
    seconds = time.perf_counter() - start
    model.save_pretrained(out, save_compressed=True)
    (out / "run.json").write_text(json.dumps({"versions": versions(), "seconds": seconds, "recipe": given}, indent=2) + "\n")


def main() -> None:
    arguments = parse_arguments()
    try:
        run(arguments.model, arguments.tokens, arguments.recipe, arguments.out)
    except PeerError as error:
        raise SystemExit(f"llmcompressor_w8a8: {error}.") from error


if __name__ == "__main__":
    main()
