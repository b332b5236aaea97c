"""What a result lost, in one sentence, and what is told where it lost more than was forecast."""

import pytest

from modicum.core.plan import Choice, Table
from modicum.fit.verdict import degree, surprise, verdict

KL = "mean KL per token"


@pytest.mark.parametrize(
    "quality, name",
    [
        ({"metric": KL, "mean": 0.002}, "near-lossless"),
        ({"metric": KL, "mean": 0.05}, "small"),
        ({"metric": KL, "mean": 0.3}, "large"),
        ({"metric": KL, "mean": 0.9}, "broken"),
        ({"metric": KL, "mean": 0.05, "perplexity": 43.2, "perplexity_original": 17.2}, "broken"),
        ({"metric": "relative squared error", "mean": 0.005}, "small"),
    ],
)
def test_what_was_lost_has_a_name(quality, name):
    assert degree(quality) == name


def test_a_broken_result_says_so_and_what_more_bytes_give():
    table = Table({"a": [Choice("gptq bits=2", 100, 1, 0.8), Choice("gptq bits=4", 120, 1, 0.1)]})
    said = verdict({"metric": KL, "mean": 0.9}, table, {"a": 0}, {"bytes": 100})
    assert said == "broken: do not use it (0.9 nats per token); 120 B is forecast to lose 12% of that."


def test_a_result_far_beyond_its_forecast_is_an_event():
    assert "0.35 were forecast" in surprise({"metric": KL, "mean": 0.91}, 0.35)
    assert not surprise({"metric": KL, "mean": 0.4}, 0.35)
    assert not surprise({"metric": KL, "mean": 1e-5}, 1e-7)
