"""What a result lost, in one sentence, and what is told where it lost more than was forecast."""

import pytest

from modicum.core.plan import Choice, Table
from modicum.fit.verdict import elsewhere, frontier, knee, surprise, verdict
from modicum.judge.degree import degree

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


def test_values_too_may_lose_far_more_than_was_forecast():
    """Their forecasts are halves of relative squared errors."""
    assert "0.05 of the outputs squared, 0.02 were forecast" in surprise({"metric": "relative squared error", "mean": 0.05}, 0.01)
    assert not surprise({"metric": "relative squared error", "mean": 0.025}, 0.01)
    assert not surprise({"metric": "relative squared error", "mean": 9e-5}, 1e-7)  # near-lossless ten times over


def ladder(*rungs):
    """A table of one site whose options take so many bytes and lose so much."""
    return Table({"a": [Choice(f"option {index}", size, 1, harm) for index, (size, harm) in enumerate(rungs)]})


def test_the_frontier_holds_what_no_mixture_beats_in_the_order_of_bytes():
    """Of two options of equal bytes the worse, and one above the line between two others, are not on it."""
    table = ladder((100, 0.4), (100, 0.5), (200, 0.1), (250, 0.09), (300, 0.02), (900, 0.0))
    assert frontier(table) == [(100, 0.4), (200, 0.1), (300, 0.02), (900, 0.0)]
    assert frontier(ladder((100, 0.0))) == [(100, 0.0)]


def test_the_knee_is_where_more_bytes_begin_to_give_little():
    assert knee([(100, 0.4), (200, 0.1), (300, 0.02), (900, 0.0)]) == (300, 0.02)
    assert knee([(100, 40.0), (200, 0.1), (300, 0.02), (900, 0.0)]) == (300, 0.02)  # what is ruined has no say
    assert knee([(100, 0.4), (900, 0.0)]) is None and knee([]) is None


def test_a_verdict_names_the_knee_with_what_it_would_really_lose():
    table = ladder((100, 0.4), (200, 0.1), (300, 0.02), (900, 0.0))
    said = verdict({"metric": KL, "mean": 0.8}, table, {"a": 0}, {"bytes": 100})
    assert said == "broken: do not use it (0.8 nats per token); the knee of the frontier is 300 B, forecast to lose 0.04."
    said = verdict({"metric": KL, "mean": 0.02}, table, {"a": 2}, {"bytes": 300})
    assert said == "a small loss (0.02 nats per token)."


def test_what_is_lost_to_arithmetic_alone_scales_no_forecast():
    table = ladder((100, 0.4), (200, 0.1), (300, 0.02), (900, 1e-7))
    said = verdict({"metric": KL, "mean": 1e-4}, table, {"a": 3}, {"bytes": 900})
    assert said == "near-lossless (0.0001 nats per token); the knee of the frontier is 300 B, forecast to lose 0.02."


def test_where_bytes_are_free_the_next_step_is_one_of_what_is_limited():
    table = Table({"a": [Choice("few", 100, 10, 0.4), Choice("more", 300, 12, 0.05)]})
    assert "300 B is forecast to lose 12% of that" in verdict({"metric": KL, "mean": 0.4}, table, {"a": 0}, {"values": 10})


def test_another_target_is_named_where_it_is_forecast_to_lose_clearly_less():
    assert elsewhere("modicum", ladder((90, 0.1)), {"bytes": 100}, 0.4, 0.8) == "--target modicum is forecast to lose 0.2 at these bytes"
    assert not elsewhere("modicum", ladder((90, 0.39)), {"bytes": 100}, 0.4, 0.8)
    assert not elsewhere("modicum", ladder((101, 0.1)), {"bytes": 100}, 0.4, 0.8)
