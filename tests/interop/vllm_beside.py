"""What vLLM makes of directories on a processor, in an environment of its own: ``python vllm_beside.py JOBS.json RESULTS.pt``.

A job names a directory, token sequences of one length, and where wanted a dtype, an adapter and ``stand_in``. Its result is what each token's
prediction is, and of each layer with a scheme the first inputs that it met and what it made of them. Where a scheme has no kernel for processors,
``stand_in`` offers one that decodes what vLLM's loader put into the layer, by vLLM's own functions as far as there are any.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip

import torch
import vllm.model_executor.kernels.linear as kernels
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import compressed_tensors_moe_wna16
from vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils import break_fp4_bytes, dequantize_to_dtype
from vllm.model_executor.models import registry
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

STAND_INS = {
    "mp": kernels._POSSIBLE_KERNELS, "wfp8": kernels._POSSIBLE_WFP8A16_KERNELS, "nvfp4": kernels._POSSIBLE_NVFP4_KERNELS,
    "mxfp4": kernels._POSSIBLE_MXFP4_KERNELS,
}  # fmt: skip

EXPERTS = compressed_tensors_moe_wna16.CompressedTensorsWNA16MoEMethod


class _Decodes:
    """A kernel that multiplies with what a layer's tensors stand for."""

    @classmethod
    def is_supported(cls, compute_capability=None):
        return True, None

    @classmethod
    def can_implement(cls, config):
        return True, None

    @classmethod
    def get_min_capability(cls):
        return -1

    def process_weights_after_loading(self, layer):
        self.value = self.decoded(layer)

    def apply_weights(self, layer, x, bias=None):
        return torch.nn.functional.linear(x.float(), self.value, None if bias is None else bias.float()).to(x.dtype)


def from_words(words, scale, bits):
    """Numbers (..., columns) of words (..., columns · bits / 32) and scales (..., groups)."""
    codes = torch.stack([(words >> place) & (2**bits - 1) for place in range(0, 32, bits)], -1).flatten(-2) - 2 ** (bits - 1)
    return codes.float() * scale.float().repeat_interleave(codes.shape[-1] // scale.shape[-1], -1)


class DecodesWords(_Decodes, kernels.MPLinearKernel):
    """Whole numbers in words of 32 bits, under scales of groups or rows."""

    @classmethod
    def can_implement(cls, config):
        return config.weight_type in (scalar_types.uint2b2, scalar_types.uint8b128), "takes words of whole codes"

    def decoded(self, layer):
        words, scale, _ = self._get_weight_params(layer)
        kind = self.config.weight_type
        codes = (
            torch.stack([(words >> place) & (2**kind.size_bits - 1) for place in range(0, 32, kind.size_bits)], -1).flatten(1) - kind.bias
        )
        return codes.float() * scale.float().repeat_interleave(codes.shape[1] // scale.shape[1], 1)


class DecodesFloats(_Decodes, kernels.FP8ScaledMMLinearKernel):
    """8-bit floats under scales of rows."""

    def decoded(self, layer):
        return layer.weight.t().float() * layer.weight_scale.float().view(-1, 1)

    def apply_scaled_mm(self, **given):
        raise NotImplementedError


class DecodesNvfp4(_Decodes, kernels.NvFp4LinearKernel):
    """4-bit floats under 8-bit ones, as vLLM's emulation decodes them."""

    def decoded(self, layer):
        return dequantize_to_dtype(layer.weight, layer.weight_scale, layer.weight_global_scale, torch.float32, swizzle=False)


class DecodesMxfp4(_Decodes, kernels.MxFp4LinearKernel):
    """4-bit floats under powers of two."""

    def decoded(self, layer):
        return break_fp4_bytes(layer.weight, torch.float32) * torch.exp2(layer.weight_scale.float() - 127).repeat_interleave(32, 1)


class DecodesExperts(UnquantizedFusedMoEMethod):
    """Experts in whole numbers, laid out by vLLM's own method, computed with as dense ones."""

    def __init__(self, weight_quant, input_quant, moe, layer_name=None):
        super().__init__(moe)
        self.num_bits, self.strategy, self.symmetric = weight_quant.num_bits, weight_quant.strategy, weight_quant.symmetric
        self.group_size, self.packed_factor = weight_quant.group_size or -1, 32 // weight_quant.num_bits

    get_weight_shape, create_weights = EXPERTS.get_weight_shape, EXPERTS.create_weights

    def process_weights_after_loading(self, layer):
        for name in ("w13_weight", "w2_weight"):
            words, scale = layer._parameters.pop(f"{name}_packed"), layer._parameters.pop(f"{name}_scale")
            value = from_words(words, scale, self.num_bits).to(scale.dtype)
            layer.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        super().process_weights_after_loading(layer)


# vLLM takes Marlin's kernel by name where nothing but weights is in four bits.
STAND_FOR = {"mp": DecodesWords, "wfp8": DecodesFloats, "nvfp4": DecodesNvfp4, "mxfp4": DecodesMxfp4}


def stand_in(wanted):
    for kind, known in STAND_INS.items():
        known[PlatformEnum.CPU] = [each for each in known.get(PlatformEnum.CPU, []) if each is not STAND_FOR[kind]]
        known[PlatformEnum.CPU] += [STAND_FOR[kind]] if wanted else []
    kernels.MarlinNvFp4LinearKernel = DecodesNvfp4 if wanted else MARLIN
    compressed_tensors_moe_wna16.CompressedTensorsWNA16MoEMethod = DecodesExperts if wanted else EXPERTS


registry._run_in_subprocess = lambda inspect: inspect()  # or a process for each architecture would import all of vLLM anew
MARLIN = kernels.MarlinNvFp4LinearKernel
select = CompressedTensorsConfig._get_scheme_from_parts
# What the config's reading came to, of the model at hand: by class, and the words of what could not be made.
chosen: set[str] = set()


def watched(self, **parts):
    try:
        scheme = select(self, **parts)
    except Exception as error:
        chosen.add(type(error).__name__)
        raise
    chosen.add(type(scheme).__name__)
    return scheme


CompressedTensorsConfig._get_scheme_from_parts = watched


def layers_of(model, seen):
    """Let every layer with a scheme tell what it meets first."""

    def look(name, module):
        parts = [type(part).__name__ for part in vars(module.scheme).values()]
        kernel = next((part for part in parts if part.endswith("Kernel") or part.startswith("Decodes")), "")
        seen[name] = {"scheme": type(module.scheme).__name__, "kernel": kernel}

        def hook(module, given, made):
            if "inputs" not in seen[name]:
                seen[name] |= {"inputs": given[0].clone(), "outputs": (made[0] if isinstance(made, tuple) else made).clone()}

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if getattr(module, "scheme", None) is not None:
            look(name, module)


def told(rows):
    """Log-probabilities [tokens, vocabulary]."""
    return torch.tensor([[row[token].logprob for token in range(len(row))] for row in rows])


def run(job):
    stand_in(job.get("stand_in", False))
    length = len(job["tokens"][0]) + 1
    adapter = job.get("adapter")
    more = {"enable_lora": True, "max_lora_rank": 16} if adapter else {}
    llm = LLM(
        model=job["directory"], dtype=job.get("dtype", "auto"), enforce_eager=True, max_model_len=max(length, 32), max_num_seqs=2, max_logprobs=-1,
        enable_prefix_caching=False, skip_tokenizer_init=True, **more,
    )  # fmt: skip
    seen: dict = {}
    llm.apply_model(lambda model: layers_of(model, seen))
    common = {"max_tokens": 1, "temperature": 0, "detokenize": False}
    if adapter:  # beside adapters a processor's vLLM fails at predictions of prompts' tokens: those after beginnings of them are asked for
        prompts = [tokens[:end] for tokens in job["tokens"] for end in job["ends"]]
        beside = {"lora_request": LoRARequest("beside", 1, adapter)}
        made = llm.generate([{"prompt_token_ids": one} for one in prompts], SamplingParams(logprobs=-1, **common), use_tqdm=False, **beside)
        found = torch.stack([told(one.outputs[0].logprobs) for one in made]).unflatten(0, (-1, len(job["ends"]))).flatten(1, 2)
    else:
        prompts = [{"prompt_token_ids": one} for one in job["tokens"]]
        made = llm.generate(prompts, SamplingParams(prompt_logprobs=-1, **common), use_tqdm=False)
        found = torch.stack([told(one.prompt_logprobs[1:]) for one in made])
    cache = str(llm.llm_engine.vllm_config.cache_config.cache_dtype)
    llm.llm_engine.engine_core.shutdown()
    return {"logprobs": found, "layers": seen, "cache": cache}


def main(jobs, results):
    made = {}
    for name, job in json.loads(Path(jobs).read_text(encoding="utf-8")).items():
        chosen.clear()
        try:
            made[name] = run(job)
        except Exception as error:
            made[name] = {"refused": f"{type(error).__name__}: {error}"}
        made[name]["schemes"] = sorted(chosen)
        cleanup_dist_env_and_memory()
        gc.collect()
    torch.save(made, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
