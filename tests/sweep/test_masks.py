"""Which tokens a mask covers is learnt by trying."""

import pytest
import torch
from torch import nn

import modicum
from modicum.core.method import Need
from modicum.models.open import open_model
from modicum.sweep import Sweep, output_gradients, rehearse
from modicum.testing import zoo


class Attention(nn.Module):
    """A text attended to under its mask: True means padding, unless told otherwise."""

    def __init__(self, meaning="padding", lead=True, flat=False):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=lead)
        self.head, self.meaning, self.flat = nn.Linear(16, 5), meaning, flat

    def forward(self, x, mask):
        pad = {"padding": mask, "real": mask == 0, "additive": mask, "ignored": None}[self.meaning]
        out = self.layer(x, src_key_padding_mask=pad)
        return self.head(out.reshape(-1, 16)).reshape(*out.shape[:-1], 5) if self.flat else self.head(out)


def padded(meaning="padding", lead=True, filler=1.0, left=False, seed=0):
    chance = torch.Generator().manual_seed(seed)
    x, pad = torch.randn(3, 7, 16, generator=chance), torch.zeros(3, 7, dtype=torch.bool)
    pad[0, 5:] = pad[2, 3:] = True
    pad = pad.flip(1) if left else pad
    x[pad] = filler
    mask = {"padding": pad, "real": (~pad).long(), "additive": pad * torch.finfo(torch.float32).min, "ignored": pad}[meaning]
    return {"x": x if lead else x.transpose(0, 1).contiguous(), "mask": mask}


def measured(model, batch, script):
    found = {}
    Sweep(model, [batch], script, lambda stage: found.update(stage.stats), needs={Need.NORMS}).finish()
    return found


REAL = 7 + 5 + 3


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("lead", [True, False])
@pytest.mark.parametrize("meaning", ["padding", "real", "additive"])
def test_a_mask_of_any_meaning_and_layout_leaves_padding_out(meaning, lead, left):
    model, batch = open_model(Attention(meaning, lead).eval()), padded(meaning, lead, left=left)
    script = rehearse(model, batch)
    found = measured(model, batch, script)
    assert {found[name].count for name in ("layer.linear1.weight", "layer.linear2.weight", "head.weight")} == {REAL}
    sizes = [
        float(output_gradients(model, [padded(meaning, lead, filler, left)], script)["head.weight"].square.sum()) for filler in (1.0, 50.0)
    ]
    assert sizes[0] == sizes[1]


def test_tokens_one_behind_the_other_are_found_too():
    model, batch = open_model(Attention(flat=True).eval()), padded()
    assert measured(model, batch, rehearse(model, batch))["head.weight"].count == REAL


def test_a_mask_that_the_model_pays_no_heed_covers_nothing():
    model, batch = open_model(Attention("ignored").eval()), padded("ignored")
    script = rehearse(model, batch)
    assert not script.masks and script.learnt.ignored == ["mask"]
    assert measured(model, batch, script)["head.weight"].count == 21
    result = modicum.fit(Attention("ignored"), method="nearest bits=8", data=[padded("ignored", seed=seed) for seed in range(4)])
    assert any("mask: the model pays this mask no heed" in event for event in result.receipt["events"])


def test_an_encoder_and_a_decoder_of_one_length_have_their_own():
    module, batches = zoo.build("t5")
    ids = batches[0]["input_ids"][:, :12]
    mask, other = torch.ones_like(ids), torch.ones_like(ids)
    mask[:, 9:], other[:, 5:] = 0, 0
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids.flip(1), "decoder_attention_mask": other}
    script = rehearse(open_model(module), batch)
    keys = {name: cover.key for name, cover in script.masks.items()}
    assert {key for name, key in keys.items() if name.startswith("encoder.block")} == {"attention_mask"}
    crossed = {name: key for name, key in keys.items() if "EncDecAttention" in name}
    assert {key for name, key in crossed.items() if name.endswith((".k", ".v"))} == {"attention_mask"}
    assert {key for name, key in crossed.items() if name.endswith((".q", ".o"))} == {"decoder_attention_mask"}
    assert script.outputs.parts[0].cover.key == "decoder_attention_mask"


@pytest.mark.parametrize("left", [False, True])
def test_what_stands_in_padding_changes_no_receipt(left):
    made = []
    for filler in (1.0, 30.0):
        module = Attention().eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for value in module.parameters():
                nn.init.normal_(value, std=0.3)
        made.append(
            modicum.fit(module, method="gptq bits=3 group=16", data=[padded(filler=filler, left=left, seed=s) for s in range(4)]).receipt
        )
    assert made[0]["quality"] == made[1]["quality"] and made[0]["quality"]["tokens"] == REAL


def test_left_padding_is_in_no_perplexity():
    module, batches = zoo.build("llama")
    ids = batches[0]["input_ids"][:2, :10]
    found = []
    for filler in (3, 50):
        mask = torch.ones_like(ids)
        mask[0, :4] = 0
        given = ids.clone()
        given[mask == 0] = filler
        found.append(modicum.evaluate(module, data=[{"input_ids": given, "attention_mask": mask}])["quality"])
    assert found[0]["perplexity"] == pytest.approx(found[1]["perplexity"], rel=1e-5) and found[0]["tokens"] == 16


def test_padding_goes_to_no_expert():
    module, batches = zoo.build("qwen3_moe")
    ids = batches[0]["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, ids.shape[1] // 2 :] = 0
    model, batch = open_model(module), {"input_ids": ids, "attention_mask": mask}
    found = measured(model, batch, rehearse(model, batch))
    prefix = next(name for name in found if "experts.gate_up_proj[0]" in name).removesuffix("[0]")
    counts = sum(float(stats.frequency) for name, stats in found.items() if name.startswith(prefix))
    assert counts == module.config.num_experts_per_tok * int(mask.sum())


class Among(nn.Module):
    """Attention with one entry of its mask for each pair of tokens, or with lengths."""

    def __init__(self, meaning):
        super().__init__()
        self.query, self.key, self.value, self.head = (nn.Linear(16, 16) for _ in range(4))
        self.meaning = meaning

    def forward(self, x, mask):
        if self.meaning == "lengths":
            mask = torch.arange(x.shape[1]) < mask[:, None, None]
        mask = mask == 0 if self.meaning == "apart" else mask != 0
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return self.head(torch.tanh(scores.masked_fill(~mask, -1e9).softmax(-1) @ self.value(x)) + x)


def pairs(meaning):
    batch = padded("real")
    real = batch["mask"].bool()
    together = real[:, :, None] & real[:, None]
    mask = {
        "lengths": real.sum(1), "keys": real[:, None].expand(-1, 7, -1).float(), "pairs": together | torch.eye(7, dtype=torch.bool),
        "apart": ~(together | torch.eye(7, dtype=torch.bool)),
    }[meaning]  # fmt: skip
    return batch | {"mask": mask.contiguous()}


@pytest.mark.parametrize("meaning", ["lengths", "keys", "pairs", "apart"])
def test_masks_of_pairs_and_lengths_leave_padding_out(meaning):
    model, batch = open_model(Among(meaning).eval()), pairs(meaning)
    script = rehearse(model, batch)
    assert {stats.count for stats in measured(model, batch, script).values()} == {REAL}
    assert script.outputs.parts[0].cover is not None


@pytest.mark.parametrize("turned", [False, True])
def test_padding_that_sees_itself_under_a_causal_mask_is_left_out(turned):
    batch, meaning = padded("real"), "apart" if turned else "pairs"
    real = batch["mask"].bool()
    mask = real[:, :, None] & real[:, None] & torch.ones(7, 7, dtype=torch.bool).tril() | torch.eye(7, dtype=torch.bool)
    model, batch = open_model(Among(meaning).eval()), batch | {"mask": ~mask if turned else mask}
    script = rehearse(model, batch)
    assert {stats.count for stats in measured(model, batch, script).values()} == {REAL}
    assert torch.equal(script.outputs.parts[0].cover.real(batch, (3, 7)), real)


def test_padding_that_meets_nothing_and_so_in_equal_parts_all_is_left_out():
    batch = padded("real")
    real = batch["mask"].bool()
    model, batch = open_model(Among("pairs").eval()), batch | {"mask": real[:, :, None] & real[:, None]}
    script = rehearse(model, batch)
    assert {stats.count for stats in measured(model, batch, script).values()} == {REAL} and not script.learnt.events()


def test_a_mask_of_pairs_of_which_nothing_is_told_is_told():
    """Texts one behind the other, of lengths that differ: no token is left out, and nothing says so."""
    batches = [padded("real", seed=seed) for seed in range(4)]
    for batch in batches:
        first = batch["mask"].bool()
        batch["mask"] = first[:, :, None] == first[:, None]
    result = modicum.fit(Among("pairs"), method="nearest bits=8", data=batches)
    assert any("mask: which tokens this mask leaves out could not be told" in event for event in result.receipt["events"])


def test_whole_numbers_that_are_no_lengths_are_no_mask():
    model, batch = open_model(Among("lengths").eval()), pairs("lengths")
    model.module.forward = lambda x, mask: Among.forward(model.module, x, torch.full((3,), 7)) + 0.1 * mask[:, None, None]
    script = rehearse(model, batch)
    assert not script.masks and not script.learnt.ignored


def test_lengths_that_once_changed_look_like_marks_are_no_reason_to_fail():
    model, batch = open_model(Among("lengths").eval()), pairs("lengths")
    few = {"x": batch["x"][:1], "mask": torch.tensor([[2]])}
    model.module.forward = lambda x, mask: Among.forward(model.module, x, mask[:, 0])
    assert rehearse(model, few).outputs.parts[0].cover is not None


def test_no_padding_costs_no_forward_but_the_rehearsal_and_the_four_side_by_side():
    module, calls = Attention("ignored").eval(), []
    module.head.register_forward_hook(lambda *_: calls.append(1))
    batch = {"x": torch.randn(3, 7, 16), "mask": torch.zeros(3, 7, dtype=torch.bool)}
    rehearse(open_model(module), batch)
    assert len(calls) <= 5


class Both(Attention):
    """Two outputs, which a tuple numbers."""

    def forward(self, x, mask):
        found = super().forward(x, mask)
        return found, 2 * found


def test_outputs_that_are_only_numbered_have_their_mask():
    script = rehearse(open_model(Both().eval()), padded())
    assert [part.name for part in script.outputs.parts] == ["0", "1"] and all(part.cover is not None for part in script.outputs.parts)


class Beside(nn.Module):
    """Attention that obeys the mask, before or behind a layer that does not."""

    def __init__(self, other, first):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        both = nn.GRU(16, 8, batch_first=True, bidirectional=True)
        self.other = nn.Conv1d(16, 16, 3, padding=1) if other == "convolution" else both
        self.head, self.first = nn.Linear(16, 3), first

    def beside(self, x):
        return self.other(x)[0] if isinstance(self.other, nn.GRU) else self.other(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, x, mask):
        x = self.beside(x) if self.first else x
        x = x + self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]
        return self.head(x if self.first else self.beside(x))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", ["convolution", "recurrent"])
def test_padding_is_left_out_though_another_layer_passes_it_on(other, first):
    model, batch = open_model(Beside(other, first).eval()), padded()
    script = rehearse(model, batch)
    found = measured(model, batch, script)
    assert found["head.weight"].count == found["attention.in_proj_weight"].count == REAL
    assert torch.equal(script.outputs.parts[0].cover.real(batch, (3, 7)), ~batch["mask"])
    assert "not all layers obey this mask" in script.learnt.events()[0] and not script.learnt.loose


class Crossing(Attention):
    """What comes out is another text of the same length, in which all tokens are; layers before it pass padding on."""

    def __init__(self):
        super().__init__()
        self.along, self.asked = nn.GRU(16, 8, batch_first=True, bidirectional=True), nn.Parameter(torch.randn(1, 7, 16))

    def forward(self, x, mask):
        memory = self.along(self.layer(x, src_key_padding_mask=mask))[0]
        return self.head((self.asked.expand(len(x), -1, -1) @ memory.transpose(1, 2)).softmax(-1) @ memory)


def test_another_text_of_the_same_length_is_not_under_the_mask():
    model, batch = open_model(Crossing().eval()), padded()
    script = rehearse(model, batch)
    assert script.outputs.parts[0].cover is None and measured(model, batch, script)["head.weight"].count == 21
    assert "head, output output, of whose tokens it could not be told which are padding" in script.learnt.events()[-1]


def test_an_evaluation_leaves_out_padding_that_layers_pass_on():
    module, other = Beside("recurrent", False).eval(), Beside("recurrent", False).eval()
    batch = padded()
    found = modicum.evaluate(other, reference=module, data=[batch], classes="-1")
    real = ~batch["mask"]
    with torch.no_grad():
        p, q = (part(**batch).log_softmax(-1) for part in (module, other))
    each = (p.exp() * (p - q)).sum(-1)
    assert found["quality"]["mean"] == pytest.approx(sum(float(row[mask].mean()) for row, mask in zip(each, real)) / 3, rel=1e-4)
    assert found["quality"]["tokens"] == REAL and any("not all layers obey this mask" in note for note in found["data"]["notes"])


class Asking(Among):
    """One text asked for by another of the same length, under a mask of both."""

    def forward(self, x, y, mask):
        scores = (self.query(y) @ self.key(x).transpose(1, 2)).masked_fill((mask == 0) ^ (self.meaning == "apart"), -1e9)
        return self.head(torch.tanh(scores.softmax(-1) @ self.value(x)) + y)


@pytest.mark.parametrize("meaning", ["pairs", "apart"])
def test_a_mask_of_two_texts_is_read_along_one_and_says_so(meaning):
    batch, asks = padded("real"), torch.arange(7) < torch.tensor([[4], [7], [6]])
    together = asks[:, :, None] & batch["mask"].bool()[:, None]
    batch |= {"y": torch.randn(3, 7, 16), "mask": together if meaning == "pairs" else ~together}
    model = open_model(Asking(meaning).eval())
    script = rehearse(model, batch)
    found = measured(model, batch, script)
    assert found["value.weight"].count == REAL and found["query.weight"].count == 21
    assert (
        "mask: its rows and its columns leave out different tokens; read were its columns as padding of what goes into key"
        in script.learnt.events()[0]
    )


class ByHead(nn.Module):
    """Attention by torch's own module under a mask with an entry for each head, or by hand where heads have an axis of their own."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 5)

    def forward(self, x, mask):
        mask = mask.flatten(0, 1) if mask.ndim == 4 else mask
        return self.head(x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0])


@pytest.mark.parametrize("meaning", ["axis", "folded", "biases"])
def test_a_mask_of_every_head_is_read_once(meaning):
    batch = padded()
    mask = batch["mask"][:, None, None].expand(3, 2, 7, 7)
    if meaning == "biases":  # of distances, on tokens that see those before them alone
        apart = torch.arange(7) - torch.arange(7)[:, None]
        mask = (apart * torch.tensor([0.5, 0.25])[:, None, None]).expand(3, 2, 7, 7).masked_fill(mask | (apart > 0), torch.finfo().min)
    model, batch = open_model(ByHead().eval()), batch | {"mask": mask.flatten(0, 1) if meaning == "folded" else mask}
    script = rehearse(model, batch)
    assert measured(model, batch, script)["head.weight"].count == REAL and not script.learnt.events()


def test_heads_that_leave_out_different_tokens_are_told():
    batch = padded()
    mask = torch.stack([batch["mask"], batch["mask"].flip(0)], 1)[:, :, None].expand(3, 2, 7, 7)
    script = rehearse(open_model(ByHead().eval()), batch | {"mask": mask})
    assert "mask: which tokens this mask leaves out could not be told" in script.learnt.events()[0]


def test_a_picture_of_zeros_and_ones_is_no_mask():
    picture = (torch.rand(3, 1, 7, 7, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    assert not rehearse(open_model(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(100, 3)).eval()), (picture,)).learnt.events()
