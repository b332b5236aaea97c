"""Compress a causal language model with llm-compressor and save what it then computes as plain dense weights.

It runs in an environment of its own (see README.md beside this file), as a subprocess of the side-by-side benchmark:

    python bench/peer/llmcompressor_run.py --model DIR --tokens tokens.safetensors --recipe recipe.json --out DIR

What leaves is a Transformers checkpoint that any evaluation loads without knowing who made it, and `run.json` with the time, the
memory and the settings really used. Whatever would make the comparison unlike what was asked (a ragged group, a layer left
as it was, a solver that gave up) ends the run with an error.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported; every input here is a local file

import compressed_tensors
import llmcompressor
import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, forward_quantize
from compressed_tensors.utils import match_named_modules, patch_attr
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines import CalibrationPipeline
from llmcompressor.pipelines.cache import IntermediatesCache
from loguru import logger
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader

QUANTIZERS = ("gptq", "rtn", "awq")
PRUNERS = ("sparsegpt", "wanda")
# What the two Cholesky-based methods log when they give a layer up and treat it with a weaker rule.
FALLBACKS = ("Hessian inversion failed", "Failed to invert hessian")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json", "merges.txt")
SAMPLE_SECONDS = 0.02
CHECKED_ROWS = 64  # rows of each weight whose levels are counted; all rows would cost more than the compression
CHECKED_TOKENS = 256  # tokens of each of two sequences on which logits are compared


class PeerError(Exception):
    """A run that cannot be what the recipe asked for."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to do, as read from recipe.json; keys a method does not use are allowed and have no effect."""

    method: str
    bits: int = 4
    group: int | None = 128
    symmetric: bool = True
    damping: float = 0.01
    order: str | None = None
    observer: str | None = None
    sparsity: float = 0.5
    pattern: str = "0:0"
    ignore: tuple[str, ...] = ("lm_head",)
    dtype: str = "float32"
    batch_size: int = 1
    pipeline: str | None = None
    sequential_targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require(self.method in QUANTIZERS + PRUNERS, f"method must be one of {QUANTIZERS + PRUNERS}, it is {self.method!r}")
        require(self.order in (None, "static"), f"order must be null or 'static', it is {self.order!r}")
        require(self.observer in (None, "minmax", "mse"), f"observer must be null, 'minmax' or 'mse', it is {self.observer!r}")
        require(self.dtype in ("float32", "bfloat16"), f"dtype must be 'float32' or 'bfloat16', it is {self.dtype!r}")
        require(self.pipeline in (None, "sequential", "basic"), f"pipeline must be null, 'sequential' or 'basic', it is {self.pipeline!r}")
        require(2 <= self.bits <= 8, f"bits must be from 2 to 8, they are {self.bits}")
        require(0 < self.sparsity < 1, f"sparsity must be between 0 and 1, it is {self.sparsity}")
        require(self.batch_size >= 1, f"batch_size must be at least 1, it is {self.batch_size}")
        require(self.group is None or self.group >= 1, f"group must be null (one per row) or at least 1, it is {self.group}")
        require(re.fullmatch(r"\d+:\d+", self.pattern) is not None, f"pattern must look like '2:4', it is {self.pattern!r}")
        pruned, span = self.pruned_of_span
        agrees = span == 0 or pruned / span == self.sparsity
        require(agrees, f"pattern {self.pattern} prunes {pruned} of {span} weights, which is not sparsity {self.sparsity}")

    @property
    def pruned_of_span(self) -> tuple[int, int]:
        """Of how many neighbouring columns how many are pruned, as llm-compressor reads N:M; (0, 0) where any may be."""
        pruned, span = (int(part) for part in self.pattern.split(":"))
        return pruned, span


def require(holds: bool, message: str) -> None:
    if not holds:
        raise PeerError(message)


def main() -> None:
    arguments = parse_arguments()
    try:
        run(arguments.model, arguments.tokens, arguments.recipe, arguments.out, arguments.allow_fallback)
    except PeerError as error:
        raise SystemExit(f"llmcompressor_run: {error}.") from error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint to compress")
    parser.add_argument("--tokens", type=Path, required=True, help="safetensors file with one int64 tensor input_ids [N, T]")
    parser.add_argument("--recipe", type=Path, required=True, help="JSON file, see README.md")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument(
        "--allow-fallback", action="store_true", help="accept layers that the method gave up on; run.json keeps its warnings"
    )
    return parser.parse_args()


def run(model_path: Path, tokens_path: Path, recipe_path: Path, out: Path, allow_fallback: bool) -> None:
    require(model_path.is_dir(), f"--model must be a folder, {model_path} is none")
    require(not out.exists() or not any(out.iterdir()), f"--out must be new or empty, {out} is not")
    recipe = read_recipe(recipe_path)
    model = load_model(model_path, recipe)
    tokens = read_tokens(tokens_path, recipe, model.config.vocab_size)
    targets = find_targets(model, recipe)
    modifiers = build_modifiers(recipe, targets)
    make_resident(model)
    with collect_warnings() as warnings, PeakMemory() as memory:
        start, start_cpu = time.perf_counter(), time.process_time()
        compress(model, tokens, modifiers, recipe)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    fallbacks = {message: times for message, times in warnings.items() if message.startswith(FALLBACKS)}
    require(allow_fallback or not fallbacks, "the method gave up on some layers: " + " ".join(fallbacks))
    checks = save_dense(model, model_path, out, recipe, targets)
    checks["max_logit_difference"] = compare_logits(model, load_model(out, recipe), tokens)
    report = {
        "versions": versions(),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory": {"before_bytes": memory.before, "growth_bytes": memory.peak - memory.before},
        **checks,
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "tokens": {"sequences": tokens.shape[0], "length": tokens.shape[1], "batch_size": recipe.batch_size},
        "recipe": asdict(recipe),
        "settings": [settings_used(modifier, recipe) for modifier in modifiers],
        "compressed": targets,
        "warnings": warnings,
        "fallbacks": fallbacks,
    }
    (out / "run.json").write_text(json.dumps(report, indent=2, default=str) + "\n")


def read_recipe(path: Path) -> Recipe:
    given = json.loads(path.read_text())
    unknown = sorted(set(given) - {field.name for field in fields(Recipe)})
    require(not unknown, f"the recipe has unknown keys {unknown}")
    require("method" in given, "the recipe must name a method")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return Recipe(**values)


def read_tokens(path: Path, recipe: Recipe, vocabulary: int) -> torch.Tensor:
    """Return int64 [N, T]; a last batch smaller than the others is refused, since the traced model is run at one batch size."""
    tensors = load_file(path)
    require(set(tensors) == {"input_ids"}, f"the token file must hold input_ids alone, it holds {sorted(tensors)}")
    tokens = tensors["input_ids"]
    require(tokens.dtype == torch.int64 and tokens.ndim == 2, f"input_ids must be int64 [N, T], it is {tokens.dtype} {list(tokens.shape)}")
    require(tokens.shape[0] % recipe.batch_size == 0, f"{tokens.shape[0]} sequences do not divide into batches of {recipe.batch_size}")
    low, high = int(tokens.min()), int(tokens.max())
    require(low >= 0 and high < vocabulary, f"token ids must be from 0 to {vocabulary - 1}, they are from {low} to {high}")
    return tokens


def load_model(path: Path, recipe: Recipe) -> Any:
    dtype = getattr(torch, recipe.dtype)
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True).eval()


def make_resident(model: Any) -> None:
    """Copy the weights out of the mapped file, so that writing to them later is not counted as new memory."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def find_targets(model: Any, recipe: Recipe) -> list[str]:
    """Name the linear layers to compress, in the model's order; refuse those the recipe does not fit."""
    for pattern in recipe.ignore:
        require(any(match_named_modules(model, [pattern])), f"ignore entry {pattern!r} matches no layer of the model")
    found = dict(match_named_modules(model, ["Linear"], recipe.ignore))
    require(len(found) > 0, "the recipe leaves no linear layer to compress")
    span = (recipe.group if recipe.method in QUANTIZERS else recipe.pruned_of_span[1]) or 1
    ragged = [f"{name} ({module.in_features} columns)" for name, module in found.items() if module.in_features % span]
    require(not ragged, f"columns must divide into groups of {span}; these do not: {', '.join(ragged)}")
    embedding = model.get_input_embeddings().weight
    tied = [name for name, module in found.items() if module.weight is embedding]
    require(not tied, f"{tied} shares its weight with the embedding; add it to ignore")
    return list(found)


def build_modifiers(recipe: Recipe, targets: list[str]) -> list[Any]:
    """Write the recipe as llm-compressor's modifiers; layers are named one by one, so `ignore` has one meaning for all."""
    if recipe.method in PRUNERS:
        pruning: dict[str, Any] = {"sparsity": recipe.sparsity, "mask_structure": recipe.pattern, "targets": targets}
        if recipe.method == "wanda":
            return [WandaPruningModifier(**pruning)]
        return [SparseGPTModifier(**pruning, dampening_frac=recipe.damping)]
    groups = {"group_0": QuantizationScheme(targets=targets, weights=weight_arguments(recipe))}
    if recipe.method == "gptq":
        return [GPTQModifier(config_groups=groups, dampening_frac=recipe.damping, actorder=recipe.order)]
    rounding = QuantizationModifier(config_groups=groups)
    return [AWQModifier(), rounding] if recipe.method == "awq" else [rounding]


def weight_arguments(recipe: Recipe) -> QuantizationArgs:
    return QuantizationArgs(
        num_bits=recipe.bits,
        type="int",
        symmetric=recipe.symmetric,
        strategy="group" if recipe.group else "channel",
        group_size=recipe.group,
        **({"observer": f"memoryless_{recipe.observer}"} if recipe.observer else {}),
    )


def compress(model: Any, tokens: torch.Tensor, modifiers: list[Any], recipe: Recipe) -> None:
    rows: Any = [{"input_ids": row} for row in tokens]
    batches: Any = DataLoader(rows, batch_size=recipe.batch_size, shuffle=False)
    # oneshot wants a tokenizer even where the data are token ids; an empty one keeps it from looking for one.
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"": 0}, unk_token="")))
    pipeline = {"pipeline": recipe.pipeline} if recipe.pipeline else {}
    sequential = list(recipe.sequential_targets) if recipe.sequential_targets else None
    with pinning_where_possible():
        llmcompressor.oneshot(
            model=model, tokenizer=tokenizer, dataset=batches, recipe=modifiers, sequential_targets=sequential, **pipeline
        )


def pinning_where_possible() -> contextlib.AbstractContextManager[Any]:
    """Without an accelerator, keep AWQ from pinning its cache for one, which fails there; no number depends on it."""
    if torch.accelerator.is_available():
        return contextlib.nullcontext()
    return patch_attr(IntermediatesCache, "pin_memory", lambda cache, batch: None)


def settings_used(modifier: Any, recipe: Recipe) -> dict[str, Any]:
    pipeline = CalibrationPipeline.from_modifiers([modifier], user=recipe.pipeline)
    names = {"targets": True, "config_groups": {"group_0": {"targets"}}}  # already in the report, as `compressed`
    values = modifier.model_dump(mode="json", exclude=names)
    return {"modifier": type(modifier).__name__, "pipeline": type(pipeline).__name__, **values}


def save_dense(model: Any, model_path: Path, out: Path, recipe: Recipe, targets: list[str]) -> dict[str, float]:
    """Write the weights the compressed model computes with, in a checkpoint like the first; return what was measured of them."""
    effective = effective_state(model)
    dense = load_model(model_path, recipe)
    original = dense.state_dict()
    missing = sorted(set(original) - set(effective))
    require(not missing, f"llm-compressor changed the model's structure; these weights are gone: {missing[:5]}")
    checks = check_weights(original, effective, recipe, targets)
    dense.load_state_dict({name: effective[name] for name in original})
    dense.save_pretrained(out)
    for file in TOKENIZER_FILES:
        if (model_path / file).exists():
            shutil.copy(model_path / file, out / file)
    return checks


@torch.no_grad()
def effective_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the state with each quantized weight rounded by the very function that the quantized layer's forward uses."""
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.weights is not None:
            state[f"{name}.weight"] = forward_quantize(module, module.weight.data, "weight", scheme.weights)
    return state


def check_weights(
    original: dict[str, torch.Tensor], effective: dict[str, torch.Tensor], recipe: Recipe, targets: list[str]
) -> dict[str, float]:
    """Require that every target became what was asked and, where the method scales no neighbours, that nothing else changed."""
    weights = {name: effective[f"{name}.weight"] for name in targets}
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    require(not broken, f"these weights are not finite: {broken}")
    if recipe.method != "awq":
        kept = set(original) - {f"{name}.weight" for name in targets}
        moved = sorted(name for name in kept if not torch.equal(original[name], effective[name]))
        require(not moved, f"these weights were to be left alone and changed: {moved[:5]}")
    zeros = {name: float((weight == 0).double().mean()) for name, weight in weights.items()}
    if recipe.method in PRUNERS:
        dense = [name for name, share in zeros.items() if share < recipe.sparsity - 0.01]
        require(not dense, f"these weights are not as sparse as asked: {dense}")
        return {"mean_sparsity": sum(zeros.values()) / len(zeros)}
    levels = {name: count_levels(weight, recipe.group) for name, weight in weights.items()}
    fine = [name for name, count in levels.items() if count > 2**recipe.bits]
    require(not fine, f"these weights have more than {2**recipe.bits} levels in a group: {fine}")
    return {"most_levels_in_a_group": max(levels.values())}


def count_levels(weight: torch.Tensor, group: int | None) -> int:
    """Return the most distinct values within one group, over the first rows of the weight."""
    groups = weight[:CHECKED_ROWS].float().unflatten(1, (-1, group or weight.shape[1])).sort(dim=-1).values
    return int((groups.diff(dim=-1) != 0).sum(dim=-1).max()) + 1


@torch.no_grad()
def compare_logits(compressed: Any, dense: Any, tokens: torch.Tensor) -> float:
    """Return the largest difference between the logits of the compressed model in memory and of the saved one."""
    sample = tokens[:2, :CHECKED_TOKENS]
    want, got = compressed(sample).logits.float(), dense(sample).logits.float()
    difference = float((want - got).abs().max())
    limit = 1e-3 * float(want.abs().max())
    require(difference <= limit, f"the saved model's logits differ by {difference:.2e}, more than {limit:.2e}")
    return difference


@contextlib.contextmanager
def collect_warnings() -> Iterator[Counter[str]]:
    """Count each distinct warning that llm-compressor logs."""
    counts: Counter[str] = Counter()
    handle = logger.add(
        lambda message: counts.update([message.record["message"]]),
        level="WARNING",
        filter=lambda record: record["level"].name != "METRIC",  # ranks above a warning and only reports progress
    )
    try:
        yield counts
    finally:
        logger.remove(handle)


class PeakMemory:
    """Sample this process's resident anonymous and shared memory while the block runs; `before` and `peak` are bytes."""

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # freed memory the allocator still holds would hide what the block takes
        self.before = self.peak = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, resident_bytes())


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def versions() -> dict[str, str]:
    packages = {"llmcompressor": llmcompressor, "compressed-tensors": compressed_tensors, "torch": torch, "transformers": transformers}
    return {"python": platform.python_version(), **{name: str(package.__version__) for name, package in packages.items()}}


if __name__ == "__main__":
    main()
