#!/usr/bin/env bash
# Transformers 5.24.0 reads Gemma 2 from GGUF with every weight and with query_pre_attn_scalar=256 whatever the model had, for the file has no place
# for it: llama.cpp scales attention by the width of a head, or of the largest model by that of the stream over the heads. Of a model whose scale is
# another (144 in the largest) it makes other logits without a word. Put right by hand, the logits are the original's.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0
"$work/env/bin/python" -W ignore - "$work" <<'PY'
import importlib.metadata
import json
import sys
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def named(name):
    name = name.removeprefix("model.").removesuffix(".weight")
    if name.startswith("layers."):
        block, _, part = name.removeprefix("layers.").partition(".")
        return f"blk.{block}.{NAMES[part]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm"}[name] + ".weight"


torch.manual_seed(0)
window = 8
config = Gemma2Config(
    vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    query_pre_attn_scalar=16, sliding_window=window, max_position_embeddings=128, attn_implementation="eager",
)  # fmt: skip
model = Gemma2ForCausalLM(config).eval()
for weight in model.parameters():
    weight.data.normal_(0, 0.2)

folder = Path(sys.argv[1])
writer = gguf.GGUFWriter(folder / "model.gguf", "gemma2")
writer.add_context_length(128)
writer.add_embedding_length(64)
writer.add_block_count(2)
writer.add_feed_forward_length(128)
writer.add_head_count(4)
writer.add_head_count_kv(2)
writer.add_key_length(16)
writer.add_value_length(16)
writer.add_layer_norm_rms_eps(config.rms_norm_eps)
writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
writer.add_final_logit_softcapping(config.final_logit_softcapping)
writer.add_sliding_window(window)
writer.add_vocab_size(256)
for name, value in model.state_dict().items():
    if name != "lm_head.weight":
        # In these files norms hold one plus the weight.
        writer.add_tensor(named(name), (value + (1 if "norm" in name else 0)).numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager").eval()
assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(model.parameters(), loaded.parameters()))
ids = torch.randint(0, 256, (1, 48))


def gap():
    with torch.no_grad():
        return float((model(ids).logits - loaded(ids).logits).abs().max())


before = gap()
for layer in loaded.model.layers:
    layer.self_attn.scaling = config.query_pre_attn_scalar**-0.5
after = gap()
for package in ("transformers", "gguf", "accelerate"):
    print(package, importlib.metadata.version(package))
told = {"original": config.query_pre_attn_scalar, "loaded": loaded.config.query_pre_attn_scalar}
print(json.dumps({"query_pre_attn_scalar": told, "largest difference of logits": before, "with the scale put right": after}))
assert told["loaded"] == 256 and before > 0.5 and after < 1e-3, "the reader now finds the scale"
PY
