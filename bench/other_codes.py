"""Codes that the container does not have, beside those that it has: what each takes beyond the Gaussian reference, on layers of the demo.

`python -m bench.other_codes`. All are decided column by column on the same covariance; what stands beside the codes is counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM

from bench.common import show
from modicum.core.unit import Stats
from modicum.data.splits import from_text
from modicum.models.located import DEMO
from modicum.models.open import open_model
from modicum.numerics.grid import Grid
from modicum.numerics.solver import solve
from modicum.numerics.waterfill import least_bits
from modicum.quantize import Gptq, Gptvq, Watersic
from modicum.quantize._factor import factored

LAYERS = ("layers.1.self_attn.q_proj", "layers.3.self_attn.o_proj", "layers.4.mlp.gate_proj", "layers.6.mlp.down_proj")
SAMPLES, TOKENS, ROUNDS, SHARES = 16, 256, 15, 24
Made = tuple[torch.Tensor, float]


def main() -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    for weight, covariance, count in layers():
        spectrum = torch.linalg.eigvalsh(covariance.double() / count).clamp_min(0)
        for name, code in CODES.items():
            value, bits = code(weight, Stats(count=count, covariance=covariance))
            error = (value - weight).double()
            lost = float((error @ covariance.double() * error).sum()) / count
            found.setdefault(name, []).append((bits, bits - least_bits(spectrum, weight.square().mean(1), lost)))
    middle = lambda pairs, place: statistics.median(pair[place] for pair in pairs)
    rows = sorted(((middle(pairs, 1), name, middle(pairs, 0)) for name, pairs in found.items()))
    show(
        "Other codes: bits beyond the Gaussian reference, medians of four layers of the demo",
        ("code", "bits per weight", "of them beyond the reference"),
        [(name, f"{bits:.2f}", f"{wasted:.2f}") for wasted, name, bits in rows],
        f"Columns decided in turn, later ones absorbing errors, GPTQ then refined; scales and codebooks of 16 bits counted; {SAMPLES} × {TOKENS} "
        "tokens. `python -m bench.other_codes`.",
    )


def layers() -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Weight, covariance of inputs and number of tokens of each layer."""
    model, sums = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32), {}
    data = from_text(None, open_model("demo").tokenizer, samples=SAMPLES, tokens=TOKENS)
    tokens = torch.cat([batch["input_ids"] for batch in data.calibration])  # type: ignore[call-overload,index]
    modules = {name: model.get_submodule(f"model.{name}") for name in LAYERS}

    def seen(name: str) -> Callable:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2)
            sums[name] = sums.get(name, 0) + rows.T @ rows

        return hook

    for name, module in modules.items():
        module.register_forward_pre_hook(seen(name))
    with torch.no_grad():
        for part in tokens.split(4):
            model(input_ids=part)
    return [(module.weight.detach(), sums[name], tokens.numel()) for name, module in modules.items()]  # type: ignore[union-attr]


def coded(rate: float, paths: bool) -> Callable[[torch.Tensor, Stats], Made]:
    def code(weight: torch.Tensor, stats: Stats) -> Made:
        form = Watersic(rate=rate, paths=paths).code(weight, stats, torch.bfloat16)
        return form.dense().float(), 8 * form.nbytes / weight.numel()

    return code


def grid(bits: int, group: int) -> Callable[[torch.Tensor, Stats], Made]:
    def code(weight: torch.Tensor, stats: Stats) -> Made:
        form = Gptq(bits=bits, group=group, symmetric=True).quantize(weight, Grid(bits, group, True), stats, torch.bfloat16)
        return form.dense().float(), 8 * form.nbytes / weight.numel()

    return code


def half_grid(bits: int, group: int) -> Callable[[torch.Tensor, Stats], Made]:
    """Levels ±1/2, ±3/2, ... of a group's scale, found by least weighted error before the columns are decided."""
    top = 2 ** (bits - 1) - 0.5
    near = lambda values, scale: (values / scale).sub(0.5).round().clamp(-top - 0.5, top - 0.5).add(0.5) * scale

    def code(weight: torch.Tensor, stats: Stats) -> Made:
        assert stats.covariance is not None
        groups, counts = weight.view(len(weight), -1, group), stats.covariance.diagonal().view(1, -1, group)
        scales = [groups.abs().amax(2, keepdim=True) / top * share for share in torch.linspace(0.3, 1.0, SHARES).tolist()]
        lost = torch.stack([((near(groups, scale) - groups).square() * counts).sum(2) for scale in scales])
        scale = torch.stack(scales).squeeze(3).gather(0, lost.argmin(0)[None])[0].bfloat16().float().clamp_min(1e-9)
        columns = scale.repeat_interleave(group, 1)
        return turned(weight, stats, lambda column, values: near(values, columns[:, column])), bits + 16 / group

    return code


def codebook(bits: int) -> Callable[[torch.Tensor, Stats], Made]:
    """A codebook of ``2^bits`` values for each row: weighted k-means (Lloyd), from quantiles."""

    def code(weight: torch.Tensor, stats: Stats) -> Made:
        assert stats.covariance is not None
        counts = stats.covariance.diagonal().expand_as(weight)
        centres = torch.quantile(weight, (torch.arange(2**bits) + 0.5) / 2**bits, dim=1).T.contiguous()
        for _ in range(ROUNDS):
            places = (weight[:, :, None] - centres[:, None]).abs().argmin(2)
            mass = torch.zeros_like(centres).scatter_add_(1, places, counts)
            moved = torch.zeros_like(centres).scatter_add_(1, places, counts * weight) / mass.clamp_min(1e-30)
            centres = torch.where(mass > 0, moved, centres)
        centres = centres.bfloat16().float()
        near = lambda _, values: centres.gather(1, (values[:, None] - centres).abs().argmin(1, keepdim=True))[:, 0]
        return turned(weight, stats, near), bits + 16 * 2**bits / weight.shape[1]

    return code


def books(bits: int, dimension: int, groups: int = 1, coded: bool = False) -> Callable[[torch.Tensor, Stats], Made]:
    """``gptvq``, with a codebook for each of so many groups of rows; where ``coded`` with indices at their entropy, their frequencies counted in 12
    bits each.
    """

    def code(weight: torch.Tensor, stats: Stats) -> Made:
        forms = [Gptvq(bits=bits, dimension=dimension).code(rows, stats, torch.bfloat16) for rows in weight.tensor_split(groups)]
        taken = sum(8 * form.nbytes for form in forms)
        for form in forms if coded else []:
            shares = torch.bincount(form.codes.flatten().long()).double() / form.codes.numel()
            entropy = -float((shares * shares.clamp_min(1e-300).log2()).sum())
            taken += form.codes.numel() * (entropy - bits) + 12 * 2**bits
        return torch.cat([form.dense().float() for form in forms]), taken / weight.numel()

    return code


def turned(weight: torch.Tensor, stats: Stats, near: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Each column taken to what is ``near`` it, in turn."""
    order, factor = factored(stats, 0.01)
    value = torch.empty_like(weight)
    value[:, order] = solve(weight[:, order], factor, lambda k, column: near(int(order[k]), column))[0]
    return value


CODES = {
    **{
        f"watersic of {rate:g} bits{'' if paths else ', without paths'}": coded(rate, paths)
        for rate in (2.0, 3.0)
        for paths in (True, False)
    },
    **{f"gptq of {bits} bits, groups of {group}, symmetric": grid(bits, group) for bits in (2, 3) for group in (32, 64)},
    **{f"half-integer grid of {bits} bits, groups of {group}": half_grid(bits, group) for bits in (2, 3) for group in (32, 64)},
    **{f"a codebook of {bits} bits for each row": codebook(bits) for bits in (2, 3)},
    **{
        f"gptvq of {bits} bits a pair, {f'in {groups} groups of rows' if groups > 1 else 'one codebook'}": books(bits, 2, groups)
        for bits in (4, 6)
        for groups in (1, 2, 4)
    },
    **{f"gptvq of {bits} bits a pair, indices entropy-coded": books(bits, 2, coded=True) for bits in (4, 6)},
}

if __name__ == "__main__":
    main()
