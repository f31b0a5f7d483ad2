import math

import numpy as np

from dreamfusion_jax.runs.page import curves


def lines(**metrics):
    """Lines of a metrics.jsonl; None stands for what was not finite."""
    steps = range(1, 1 + len(next(iter(metrics.values()))))
    return [
        {"step": step, **{n: v[i] for n, v in metrics.items() if v[i] is not None}}
        for i, step in enumerate(steps)
    ]


def points(path):
    return [tuple(map(float, p.split())) for p in path.replace("L", "M").split("M")[1:]]


def test_a_curve_fills_its_box_from_corner_to_corner():
    (chart,) = curves.charts(lines(opacity_mean=[0.0, 0.5, 1.0]))
    first, middle, last = points(chart.dots)
    assert first == (4, curves.HEIGHT - 4) and last == (curves.WIDTH - 4, 4)
    np.testing.assert_allclose(middle, (curves.WIDTH / 2, curves.HEIGHT / 2))
    assert (chart.low, chart.high, chart.first, chart.last) == ("0", "1", "1", "3")
    assert "from 0 to 1" in chart.description and not chart.logarithmic


def test_wide_ranges_of_positive_values_are_logarithmic():
    (wide,) = curves.charts(lines(opacity_mean=[1.0, 10.0, 100.0]))
    assert wide.logarithmic
    np.testing.assert_allclose(points(wide.dots)[1][1], curves.HEIGHT / 2)
    (signed,) = curves.charts(lines(opacity_mean=[-1.0, 10.0, 100.0]))
    assert not signed.logarithmic


def test_a_missing_value_is_a_gap():
    (chart,) = curves.charts(lines(residual_rms=[1.0, None, 3.0, 4.0]))
    assert len(points(chart.dots)) == 3
    assert [piece.count("L") for piece in chart.dots.split("M")[1:]] == [0, 1]


def test_what_tells_nothing_is_not_drawn():
    metrics = lines(residual_rms=[2.0, 2.0], **{"regularizer/a": [0.0, 0.0], "other": [1.0, 2.0]})
    assert [chart.name for chart in curves.charts(metrics)] == ["residual_rms"]
    assert curves.charts(lines(residual_rms=[2.0])) == [] and curves.charts([]) == []


def test_the_running_mean_keeps_lines_and_averages_what_is_known():
    straight = np.linspace(3.0, 7.0, 101)
    smooth = curves.running_mean(straight)
    np.testing.assert_allclose(smooth[10:-10], straight[10:-10])
    holes = np.where(np.arange(101) % 2, math.nan, 5.0)
    assert np.array_equal(np.isnan(curves.running_mean(holes)), np.isnan(holes))
    np.testing.assert_allclose(curves.running_mean(holes)[::2], 5.0)
