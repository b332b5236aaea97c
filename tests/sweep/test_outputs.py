"""What of an output is judged, and how."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

import modicum
from modicum.core.errors import ModelError, SettingError
from modicum.judge.quality import compare
from modicum.sweep.outputs import CLASSES, INDEPENDENT, VALUES, Outputs, described, divergence, likelihood


def told(output, config=None, **settings):
    return [(part.name, part.kind, part.axis) for part in described(output, config, **settings).parts]


def judged(left, right, batch=None, outputs=None, causal=False):
    batch = batch or (torch.zeros(len(left) if isinstance(left, torch.Tensor) and left.ndim else 2, 3),)
    return compare(iter([(0, left)]), iter([(0, right)]), [batch], causal, outputs)


# Which tensors, and what they are


@pytest.mark.parametrize(
    "output, config, expected",
    [
        (torch.randn(2, 5), None, [("output", VALUES, -1)]),
        ({"logits": torch.randn(2, 5)}, None, [("logits", CLASSES, -1)]),
        ({"logits": torch.randn(2, 1)}, None, [("logits", VALUES, -1)]),
        ({"logits": torch.randn(2)}, None, [("logits", VALUES, -1)]),
        ({"logits": torch.randn(2, 5, 8, 9)}, None, [("logits", CLASSES, 1)]),
        ({"logits": torch.randn(2, 3, 4, 7)}, SimpleNamespace(vocab_size=7), [("logits", CLASSES, -1)]),
        ({"logits": torch.randn(2, 5)}, SimpleNamespace(problem_type="multi_label_classification"), [("logits", INDEPENDENT, -1)]),
        ({"logits": torch.randn(2, 5)}, SimpleNamespace(problem_type="regression"), [("logits", VALUES, -1)]),
        ({"logits_per_image": torch.randn(2, 2)}, None, [("logits_per_image", VALUES, -1)]),
        ({"loss": torch.randn(()), "prediction": torch.randn(2, 4)}, None, [("prediction", VALUES, -1)]),
        ((torch.randn(()), torch.randn(2, 4)), None, [("1", VALUES, -1)]),
        (torch.randn(()), None, [("output", VALUES, -1)]),
        ({"a": [torch.randn(2, 3), {"b": torch.randn(2, 4)}]}, None, [("a.0", VALUES, -1), ("a.1.b", VALUES, -1)]),
        (
            {"pred_boxes": torch.randn(2, 3, 4), "logits": torch.randn(2, 3, 9), "last_hidden_state": torch.randn(2, 3, 8)},
            None,
            [("logits", CLASSES, -1), ("pred_boxes", VALUES, -1)],
        ),
        (
            {"last_hidden_state": torch.randn(2, 3, 8), "pooler_output": torch.randn(2, 8), "past_key_values": ((torch.randn(2, 1),),)},
            None,
            [("last_hidden_state", VALUES, -1), ("pooler_output", VALUES, -1)],
        ),
    ],
)
def test_an_output_is_told_by_its_names_and_shapes(output, config, expected):
    assert told(output, config) == expected


def test_named_tuples_and_dataclasses_are_read_alike():
    made = {"boxes": torch.randn(2, 4), "logits": torch.randn(2, 5)}
    for output in (made, namedtuple("Made", made)(**made), transformers.utils.ModelOutput(made), SimpleNamespace(**made)):
        assert told(output) == [("logits", CLASSES, -1), ("boxes", VALUES, -1)]


def test_the_caller_has_the_last_word():
    output = {"scores": torch.randn(2, 6, 5), "more": torch.randn(2, 4), "count": torch.ones(2).long()}
    assert told(output, wanted="more, scores", classes="none,1") == [("more", VALUES, -1), ("scores", CLASSES, 1)]
    assert told(output, wanted="1", classes="independent") == [("more", INDEPENDENT, -1)]
    assert told(output, wanted=lambda found: found["more"], classes="1") == [("output", CLASSES, -1)]
    for wrong in ({"wanted": "boxes"}, {"wanted": "count"}, {"classes": "9"}, {"classes": "many"}, {"classes": "1,1,1,1"}):
        with pytest.raises(SettingError, match="output|classes"):
            described(output, None, **wrong)
    with pytest.raises(ModelError, match="must hold a float tensor"):
        described({"ids": torch.ones(2).long()})


# How much they differ


def test_independent_labels_differ_by_the_sum_of_their_own_divergences():
    left, right = torch.randn(3, 4), torch.randn(3, 4)
    p, q = left.double().sigmoid(), right.double().sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1)
    found = judged({"logits": left}, {"logits": right}, (left,), described({"logits": left}, classes="independent"))
    assert found.divergence == pytest.approx(expected.tolist(), rel=1e-4)


def test_one_score_next_to_nothing_does_not_stand_for_all():
    left = torch.tensor([[1e-6], [1.0], [-1.0]])
    found = judged(left, left + 0.01)
    assert found.divergence == pytest.approx([1.5e-4] * 3, rel=1e-3)


def test_every_output_is_judged_and_the_worst_is_named():
    left = {"logits": torch.randn(4, 5), "boxes": torch.randn(4, 2)}
    right = {"logits": left["logits"] + 0.01 * torch.randn(4, 5), "boxes": 1.5 * left["boxes"]}
    found = judged(left, right, (torch.zeros(4, 3),))
    summary = found.summary()
    assert summary["worst output"] == "boxes" and summary["metric"] == "mean KL per token" and summary["mean"] < 0.01
    assert [row["name"] for row in summary["outputs"]] == ["logits", "boxes"] and summary["outputs"][1]["mean"] == pytest.approx(0.25)
    assert "boxes by 0.25 (relative squared error) differs most" in found.events()[0]


def test_of_several_values_each_rows_worst_counts():
    left = (torch.ones(2, 3), torch.ones(2, 4))
    right = (torch.tensor([[1.5], [1.0]]) * left[0], torch.tensor([[1.0], [2.0]]) * left[1])
    assert judged(left, right).divergence == pytest.approx([0.25, 1.0])


def test_a_masked_vocabulary_differs_by_nothing_where_it_is_masked():
    left = torch.randn(2, 6)
    right = left + 0.1 * torch.randn(2, 6)
    for logits in (left, right):
        logits[:, 4:] = -torch.inf
    found, alone = judged({"logits": left}, {"logits": right}), judged({"logits": left[:, :4]}, {"logits": right[:, :4]})
    assert found.divergence == pytest.approx(alone.divergence, rel=1e-5) and found.divergence[0] > 0
    loss, _ = divergence({"logits": left.clone().requires_grad_()})
    assert loss.isfinite()


def test_an_original_without_numbers_is_refused():
    with pytest.raises(ModelError, match="the original's output"):
        judged(torch.full((2, 3), torch.nan), torch.ones(2, 3))


def test_an_output_without_rows_is_judged_batch_by_batch():
    batch = {"nodes": torch.randn(7, 3), "edges": torch.zeros(2, 9).long()}
    left = torch.randn(7, 5)
    found = judged({"logits": left}, {"logits": left + torch.randn(7, 5)}, batch)
    assert len(found.divergence) == 1 and found.tokens == 7
    energy = judged(torch.tensor(2.0), torch.tensor(3.0), (torch.zeros(5, 3),))
    assert energy.divergence == [0.25] and energy.by_row([(torch.zeros(5, 3),)]) == [0.25] * 5


def test_labels_that_are_to_be_ignored_are_in_no_perplexity():
    ids = torch.randint(0, 9, (1, 6))
    labels = ids.clone()
    labels[:, :3] = -100
    logits = torch.randn(1, 6, 9)
    found = judged({"logits": logits}, {"logits": logits}, {"input_ids": ids, "labels": labels}, causal=True)
    expected = nn.functional.cross_entropy(logits[0, 2:5], ids[0, 3:])
    assert found.original == pytest.approx([float(expected)], rel=1e-5)


# Gradients


@pytest.mark.parametrize("classes", ["1", "independent", "none"])
def test_the_expected_score_is_the_curvature_of_the_divergence(classes):
    """Squared gradients at labels drawn often enough give the diagonal of the Hessian."""
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    outputs = described(logits, classes=classes)
    hessian = torch.autograd.functional.hessian(lambda value: divergence(value, outputs)[0], logits.detach()).reshape(6, 6).diagonal()
    generator, total = torch.Generator().manual_seed(0), torch.zeros(2, 3)
    for _ in range(3000):
        (gradient,) = torch.autograd.grad(likelihood(logits, generator, outputs)[0], logits)
        total += gradient.square() / 3000
    assert torch.allclose(total.reshape(-1), hessian.float(), rtol=0.15, atol=0.02)


# Whole runs


class AlongTime(nn.Module):
    """Classes at each step of a series, (batch, classes, steps), as convolutions give them."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv1d(4, 32, 3, padding=1), nn.Conv1d(32, 5, 1)

    def forward(self, x):
        return {"logits": self.head(torch.relu(self.body(x)))}


def test_classes_that_a_convolution_gives_lie_on_its_channels():
    data, module = [torch.randn(3, 4, 9) for _ in range(4)], AlongTime().eval()
    result = modicum.fit(module, method="nearest bits=3 group=0", data=data)
    for quality in (result.receipt["quality"], modicum.evaluate(result.model, reference=module, data=data)["quality"]):
        assert quality["outputs"][0]["judged"] == "logits: classes on axis 1"
    p, q = (torch.cat([made(x)["logits"].detach() for x in data]).log_softmax(1) for made in (module, result.model))
    assert quality["mean"] == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-3)
    assert not module.head._forward_hooks


class Chancy(nn.Module):
    def __init__(self, chance):
        super().__init__()
        self.net, self.chance = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), chance

    def forward(self, x):
        return self.net(x + 0.5 * torch.randn_like(x) if self.chance else x)


def test_a_forward_that_draws_draws_alike_on_both_sides():
    data, module = [torch.randn(6, 16) for _ in range(4)], Chancy(True)
    before = torch.get_rng_state()
    result = modicum.fit(module, method="nearest bits=8", data=data)
    assert torch.equal(torch.get_rng_state(), before)
    assert any("draw random numbers" in event for event in result.receipt["events"])
    assert 0 < result.receipt["quality"]["mean"] < 1e-3  # with other draws it is off by a tenth
    assert modicum.evaluate(Chancy(True).eval(), reference=Chancy(True).eval(), data=data)["quality"]["mean"] > 0
    module = Chancy(True)
    assert modicum.evaluate(module, reference=module, data=data)["quality"]["mean"] == 0  # the same draws on both sides


class Forces(nn.Module):
    """An energy, and its gradient by the places: a forward that differentiates."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.net(x)
            (force,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
        return {"energy": energy, "force": force}


@pytest.mark.parametrize("words", [{"method": "nearest bits=4 group=8"}, {"budget": "24bpw", "search_time": 0}])
def test_a_forward_that_differentiates_is_judged_by_all_it_gives(words):
    result = modicum.fit(Forces(), data=[torch.randn(6, 8) for _ in range(4)], **words)
    assert {row["name"] for row in result.receipt["quality"]["outputs"]} == {"energy", "force"}


def test_what_is_judged_is_set_and_shown():
    module = nn.Conv2d(3, 5, 1).eval()
    data = [torch.randn(2, 3, 4, 4) for _ in range(4)]
    result = modicum.fit(module, method="nearest bits=3 group=0", data=data, classes=1)
    quality = result.receipt["quality"]
    assert quality["metric"] == "mean KL per token" and quality["outputs"][0]["judged"] == "output: classes on axis 1"
    assert quality["tokens"] == 2 * 16
    again = modicum.evaluate(result.model, reference=module, data=data, classes=1)["quality"]
    assert again["metric"] == quality["metric"] and again["mean"] > 0
    named = modicum.evaluate(result.model, reference=module, data=data, output=lambda found: found.flatten(2), classes=1)["quality"]
    assert named["mean"] == pytest.approx(again["mean"], rel=1e-4)


def test_outputs_kept_are_read_as_they_were():
    outputs = described({"logits": torch.randn(2, 5, 3, 3)})
    output = {"logits": torch.randn(2, 5, 3, 3)}
    assert torch.equal(outputs.of(outputs.keep(output))[0][1], outputs.of(output)[0][1])
    with pytest.raises(ModelError, match="every output must hold logits"):
        outputs.of({"scores": output["logits"]})
    assert Outputs().of(output)[0][1].shape == (2, 3, 3, 5)
