"""Curves: round scales, every peak, and numbers as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.train.curves import chart, smoothed, thinned, tick_step, ticks, value_range
from lathe.train.runs import Line, Metric, duration, metric_of, short, written

values = st.floats(width=32)
lines = st.lists(values, min_size=1, max_size=60).map(lambda v: Line("a", tuple(range(len(v))), tuple(v)))


@given(lines)
def test_a_scale_holds_its_values(line):
    low, high = value_range([line], Metric("x", "x"))
    assert low < high
    finite = [value for value in line.values if math.isfinite(value)] or [0.0]
    slack = (high - low) * 1e-6
    assert low - slack <= min(finite) and max(finite) <= high + slack
    assert 2 <= len(ticks(low, high)) <= 12


@given(lines)
def test_whatever_was_measured_can_be_drawn(line):
    text = chart([line], Metric("x", "x"), (0, 100), [0])
    assert "nan" not in text and "inf" not in text


def test_round_numbers():
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(0, 199, 5, whole=True) == [0, 50, 100, 150]
    assert ticks(0, 3, 5, whole=True) == [0, 1, 2, 3]
    assert tick_step(0, 0.0007) == pytest.approx(0.0002)
    assert value_range([Line("a", (0, 1), (0.4, 0.9))], Metric("eval_pass_rate", "")) == (0, 1)


def test_thinning_keeps_peaks_and_what_is_no_number():
    peaks = {333: 50.0, 4444: -50.0, 7000: math.nan}
    line = Line("a", tuple(range(9000)), tuple(peaks.get(step, math.sin(step)) for step in range(9000)))
    thin = thinned(line)
    assert len(thin.steps) <= 450
    assert {333, 4444, 7000, 0, 8999} <= set(thin.steps)
    assert list(thin.steps) == sorted(thin.steps)
    assert thinned(thin, 1000) is thin


def test_smoothing_is_for_many_points():
    assert smoothed(Line("a", tuple(range(40)), (1.0,) * 40)) is None
    long = Line("a", tuple(range(100)), (0.0, 2.0) * 49 + (math.inf, 1.0))
    smooth = smoothed(long)
    assert all(abs(value - 1) < 0.35 for value in smooth.values)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.412, "share", "41.2%"),
        (0.9, "share", "90%"),
        (8123, "rate", "8.12k/s"),
        (48, "tokens", "48 tokens"),
        (-0.01321, "number", "−0.0132"),
        (1e-5, "number", "1e−5"),
        (2.5e-4, "number", "2.5e−4"),
        (12_345_678, "number", "12.3M"),
        (999.9, "number", "1k"),
        (0, "number", "0"),
        (math.inf, "share", "∞"),
        (math.nan, "number", "not a number"),
        (200, "seconds", "3 min 20 s"),
    ],
)
def test_numbers_for_people(value, unit, text):
    assert written(value, unit) == text


@pytest.mark.parametrize(
    ("name", "unit"),
    [("x_pass_rate", "share"), ("y_share", "share"), ("seconds_eval", "seconds"), ("x", "number")],
)
def test_a_name_says_its_unit(name, unit):
    assert metric_of(name).unit == unit


def test_durations_and_very_large_numbers():
    assert [duration(each) for each in (2.345, 41.4, 60, 7500)] == ["2.35 s", "41 s", "1 min", "2 h 5 min"]
    assert short(1e15) == "1.00e+15"
