"""Text that a language model writes itself, to calibrate on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modicum.core.errors import SettingError
from modicum.core.sources import OWN


def written(module: nn.Module, windows: int, tokens: int, *, begin: int, seed: int = 0, batch: int = 8) -> Tensor:
    """Windows of text drawn from a causal language model of Transformers, token by token from its own distribution, as it is.

    A window begins with the token ``begin``, after which a document begins, and goes on where one ends. What a model writes has the statistics
    that it believes in, and needs no corpus (Williams, Chrysostomou and Aletras 2024, Self-calibration for Language Model Quantization and
    Pruning).

    Shapes: int64 ``[windows, tokens]``, on the CPU.

    Needs and cost: the model in memory; a forward of one token for each token, ``batch`` windows at a time.

    Raises:
        SettingError: the module cannot generate.

    """
    from transformers import GenerationConfig

    if not hasattr(module, "generate"):
        raise SettingError(f"data {OWN}: the model must be able to write, {type(module).__name__} has no generate. Give a text.")
    plain = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_new_tokens=max(1, tokens - 1),
        max_new_tokens=max(1, tokens - 1), eos_token_id=None,
        pad_token_id=begin, bos_token_id=begin, use_cache=True,
    )  # fmt: skip
    rows: list[Tensor] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for low in range(0, windows, batch):
            first = torch.full((min(batch, windows - low), 1), begin, device=next(module.parameters()).device)
            made = module.generate(first, attention_mask=torch.ones_like(first), generation_config=plain)  # type: ignore[operator]
            rows.append(made[:, :tokens].cpu())
    return torch.cat(rows)
