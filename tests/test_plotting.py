"""Names at the ends of lines: where they stand, with and without a layout engine."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from farfield.analysis.plotting import label_ends

ENDS = ((1.0, "low", "#000000"), (10.0, "middle", "#111111"), (10.5, "beside", "#222222"), (100.0, "high", "#333333"))


def placed(layout):
    figure = Figure(figsize=(6.0, 4.0), layout=layout)
    axes = figure.subplots()
    for value, _, colour in ENDS:
        axes.plot([1.0, 2.0], [3.0, value], color=colour)
    axes.set_yscale("log")
    label_ends(axes, ENDS)
    limits = axes.get_ylim()
    figure.draw_without_rendering()
    assert axes.get_ylim() == limits
    names = {text.get_text(): text for text in axes.texts}
    ends = {line.get_color(): line.get_ydata()[-1] for line in axes.lines}
    heights = {}
    for _, name, colour in ENDS:
        window = axes.transData.transform((2.0, ends[colour]))
        heights[name] = (names[name].xy[1], axes.transAxes.inverted().transform(window)[1])
    return heights


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_names_stand_at_the_heights_of_their_lines_and_apart(layout):
    heights = placed(layout)
    for name in ("low", "high"):
        assert heights[name][0] == pytest.approx(heights[name][1], abs=1e-9)
    assert heights["beside"][0] - heights["middle"][0] > 0.03  # the lines end 0.01 apart
    middle = (heights["beside"][0] + heights["middle"][0]) / 2
    assert middle == pytest.approx((heights["beside"][1] + heights["middle"][1]) / 2, abs=1e-9)
