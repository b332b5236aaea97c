"""Dense models of one kind made into a mixture: each model's feed-forward part is an expert, gates choose among them, and all else is the base's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from typing_extensions import override

from modicum.core.errors import ModelError, SettingError, quoted
from modicum.export.loaded import loaded
from modicum.merge._family import At
from modicum.merging.plan import Expert, Plan
from modicum.merging.sources import Composed, Held, Source, Stored
from modicum.models.open import model_class, open_model, read_config
from modicum.numerics.threads import single_threaded

_PART = re.compile(r"^(.*\.layers\.\d+\.)mlp\.(gate_proj|up_proj|down_proj)\.weight$")


@dataclass(frozen=True)
class Twin:
    """The mixture of a dense architecture's kind: its class, how its tensors are called, and what its config says beside the dense one's;
    whether it has an expert that every token meets.
    """

    cls: str
    gate: str
    expert: str
    parts: Mapping[str, str]
    config: Mapping[str, Any]
    shared: bool = False


_MIXTRAL = Twin(
    "MixtralForCausalLM", "block_sparse_moe.gate.weight", "block_sparse_moe.experts.{}.{}.weight",
    {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}, {},
)  # fmt: skip
_QWEN = Twin(
    "Qwen3MoeForCausalLM", "mlp.gate.weight", "mlp.experts.{}.{}.weight", {part: part for part in ("gate_proj", "up_proj", "down_proj")},
    {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
)  # fmt: skip
_QWEN2 = Twin(
    "Qwen2MoeForCausalLM", _QWEN.gate, _QWEN.expert, _QWEN.parts, {**_QWEN.config, "shared_expert_intermediate_size": 1}, shared=True
)
TWINS = {"LlamaForCausalLM": _MIXTRAL, "MistralForCausalLM": _MIXTRAL, "Qwen2ForCausalLM": _QWEN2, "Qwen3ForCausalLM": _QWEN}


@dataclass
class Mixture(Composed):
    """A ``base`` whose feed-forward parts are those of ``experts``, ``active`` of them a token, which ``gates`` (experts, hidden) by layer choose."""

    base: Stored
    experts: Sequence[Source]
    active: int
    gates: Mapping[str, torch.Tensor]
    label: str
    digest: str
    way: str

    @cached_property
    @override
    def homes(self) -> dict[str, tuple[Source, str]]:
        twin, found = twin_of(self.base)[0], dict[str, tuple[Source, str]]()
        gates = Held(self.gates, self.label)
        shared = Held(
            {name: torch.zeros(shape, dtype=gates.entry(layer)[0]) for layer in self.gates for name, shape in self._shared(layer)},
            self.label,
        )
        for name in self.base.names():
            if (match := _PART.match(name)) is None:
                found[name] = (self.base, name)
                continue
            for place, expert in enumerate(self.experts):
                found[match[1] + twin.expert.format(place, twin.parts[match[2]])] = (expert, name)
            found[match[1] + twin.gate] = (gates, match[1])
        return found | {name: (shared, name) for name in shared.names()}

    def _shared(self, layer: str) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of an expert that every token has, where the twin must have one: of one row of nothing, it adds nothing."""
        width = self.gates[layer].shape[1]
        shapes = {"gate_proj": (1, width), "up_proj": (1, width), "down_proj": (width, 1)}
        each = [(f"{layer}mlp.shared_expert.{part}.weight", shape) for part, shape in shapes.items()]
        return [*each, (f"{layer}mlp.shared_expert_gate.weight", (1, width))] if twin_of(self.base)[0].shared else []

    @override
    def entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        source, theirs = self.home(name)
        if isinstance(source, Held):
            return source.entry(theirs)
        (dtype, shape), other = self.base.entry(theirs), source.entry(theirs)[1]
        if other != shape:
            raise ModelError(
                f"{source.label}: {quoted(theirs)} must have the shape {list(shape)} of the base's to be an expert, has {list(other)}."
            )
        return dtype, shape

    def config(self) -> dict[str, Any]:
        """What stands in ``config.json``."""
        made = twin_of(self.base)[1]
        setattr(made, "num_experts" if hasattr(made, "num_experts") else "num_local_experts", len(self.experts))
        made.num_experts_per_tok = self.active
        found: dict[str, Any] = json.loads(made.to_json_string(use_diff=True))
        return found

    def told(self) -> dict[str, Any]:
        """What the receipt tells."""
        return {"experts": [{"model": each.label, "sha256": each.digest} for each in self.experts], "active": self.active, "gate": self.way}


def mixture(base: Stored, experts: Sequence[Source], plan: Plan) -> Mixture:
    """The mixture that a plan asks for. Raises ``ModelError`` for an architecture without one, ``SettingError`` for prompts that choose nothing."""
    twin_of(base)
    if not any(_PART.match(name) for name in base.names()):
        raise ModelError(f"{base.label}: must store its layers' feed-forward parts as mlp.gate_proj, up_proj and down_proj, does not.")
    said = repr(
        [
            base.digest,
            plan.gate,
            plan.seed,
            plan.active,
            *((each.digest, one.prompts, one.against) for each, one in zip(experts, plan.experts)),
        ]
    )
    label = "mixture of " + ", ".join(each.label for each in experts)
    return Mixture(base, experts, plan.active, _gates(base, plan), label, hashlib.sha256(said.encode()).hexdigest(), plan.gate)


def twin_of(base: Stored) -> tuple[Twin, Any]:
    """The mixture of a model's kind, and its config with the model's own values. Raises ``ModelError`` where there is none."""
    import transformers

    config = read_config(base.directory)
    cls = model_class(config, base.label).__name__
    if cls not in TWINS:
        raise ModelError(f"{base.label}: must be of an architecture that has a mixture of its kind ({', '.join(TWINS)}), is {cls}.")
    body, twin = config.to_dict(), TWINS[cls]
    made = getattr(transformers, twin.cls).config_class()
    lost = [key for key in ("attention_bias", "mlp_bias") if body.get(key) and key not in made.to_dict()]
    windows = {"full_attention", *(["sliding_attention"] if cls == "MistralForCausalLM" else [])}
    if lost or not set(body.get("layer_types") or windows) <= windows:
        raise ModelError(f"{base.label}: has {lost[0] if lost else 'layers with a window'}, which {twin.cls} cannot. Take another base.")
    taken = set(made.to_dict()) | {"head_dim"}
    kept = {
        key: value for key, value in body.items() if key in taken - {"model_type", "architectures", "transformers_version", "_name_or_path"}
    }
    if twin.config:
        kept |= {"moe_intermediate_size": body["intermediate_size"], **twin.config}
    return twin, type(made)(**kept, architectures=[twin.cls])


def _gates(base: Stored, plan: Plan) -> dict[str, torch.Tensor]:
    """By layer the vectors (experts, hidden) whose products with a token's state choose its experts, in the dtype of the base's layers."""
    layers = list(dict.fromkeys(match[1] for name in base.names() if (match := _PART.match(name))))
    dtype, (_, width) = base.entry(f"{layers[0]}mlp.gate_proj.weight")
    count = len(plan.experts)
    if plan.gate == "random":
        each = lambda layer: At(f"{layer}gate", (count, width), (), seed=plan.seed).draws(0, count * width)
        return {
            layer: torch.from_numpy(((each(layer) + 0.5) / 32768 - 1) * (3 / width) ** 0.5).reshape(count, width).to(dtype)
            for layer in layers
        }
    if silent := [one.model for one in plan.experts if not one.prompts]:
        raise SettingError(
            f"{silent[0]}: must have prompts, by which the gate {plan.gate} knows what is its, has none. Or take gate: random."
        )
    with single_threaded(), torch.no_grad():
        states = _Embedding(base, layers) if plan.gate == "embedding" else _Hidden(base, layers)
        rows = [_row(states, one) for one in plan.experts]
    found = {}
    for layer in layers:
        whole = torch.stack([row[layer] for row in rows])
        whole -= whole.mean(0)  # what all rows have in common chooses nothing
        sizes = whole.norm(dim=1, keepdim=True)
        if count > 1 and not float(sizes.min()) > 0:
            raise SettingError("prompts: must differ between experts, since tokens go where prompts are most like them; two have the same.")
        found[layer] = (whole / sizes.clamp(min=1e-30)).to(dtype)
    return found


def _row(states: _Embedding | _Hidden, one: Expert) -> dict[str, torch.Tensor]:
    mine, other = states(one.prompts), states(one.against) if one.against else {}
    return {layer: value - other[layer] if other else value for layer, value in mine.items()}


class _Hidden:
    """The mean state of prompts' tokens where each layer's feed-forward part, and so its gate, meets it."""

    def __init__(self, base: Stored, layers: Sequence[str]):
        self._tokenizer, self._layers = open_model(base.directory).tokenizer, layers
        self._module = loaded(model_class(read_config(base.directory), base.label), base.directory)

    def __call__(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """By layer (hidden,) float32."""
        sums, hooks, count = dict[str, torch.Tensor](), [], 0
        for layer in self._layers:

            def keep(module: Any, given: Any, layer: str = layer) -> None:
                sums[layer] = sums.get(layer, 0) + given[0].float().sum((0, 1))

            hooks.append(self._module.get_submodule(f"{layer}mlp").register_forward_pre_hook(keep))
        try:
            for prompt in prompts:
                ids = _ids(self._tokenizer, prompt)
                self._module(input_ids=ids[None], use_cache=False)
                count += len(ids)
        finally:
            for hook in hooks:
                hook.remove()
        return {layer: value / count for layer, value in sums.items()}


class _Embedding:
    """The mean row of the embedding of prompts' tokens, for every layer."""

    def __init__(self, base: Stored, layers: Sequence[str]):
        model = open_model(base.directory)
        self._tokenizer, self._layers = model.tokenizer, layers
        module: Any = model.module
        wanted = module.get_input_embeddings().weight
        name = next(name for name, value in module.named_parameters() if value is wanted)
        self._table = model.weights.read(name)

    def __call__(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """By layer (hidden,) float32."""
        mean = self._table[torch.cat([_ids(self._tokenizer, prompt) for prompt in prompts])].float().mean(0)
        return dict.fromkeys(self._layers, mean)


def _ids(tokenizer: Any, prompt: str) -> torch.Tensor:
    found = torch.tensor(tokenizer(prompt)["input_ids"], dtype=torch.long)
    if not len(found):
        raise SettingError(f"prompts: each must have a token, {quoted(repr(prompt))} has none.")
    return found
