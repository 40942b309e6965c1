"""Places on a chart with logarithmic axes."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from gns_keras.report.svg import LogChart, _ticks


def places(chart: LogChart) -> list[tuple[float, float]]:
    found = re.findall(r'<circle class="dot" cx="([-.0-9]+)" cy="([-.0-9]+)"', chart.render())
    return [(float(x), float(y)) for x, y in found]


@pytest.mark.parametrize("falling", [False, True])
def test_equal_ratios_are_equal_distances(falling: bool) -> None:
    chart = LogChart((1, 100), (1, 100), "x", "y", "title", falling=falling)
    for value in (1, 10, 100):
        chart.dot((value, value), 3, "dot")
    (x0, y0), (x1, y1), (x2, y2) = places(chart)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y2 < y0  # Up on the screen.
    assert (x2 < x0) is falling


def test_it_is_well_formed_and_escaped() -> None:
    chart = LogChart((1, 2), (1, 1e6), "a < b", "y & z", '"title"')
    chart.text((1.5, 30), "<b>")
    chart.dot((1.5, 30), 3, "dot", "5 > 4")
    chart.line([(1, 1), (2, 1e6)], "curve")
    chart.band([(1, 1), (2, 1e-300)], [(1, 2), (2, math.inf)], "band")
    root = ET.fromstring(chart.render())
    assert "a < b" in "".join(root.itertext())


def test_ticks_are_round_and_few() -> None:
    assert _ticks(0.9, 21) == [1, 2, 5, 10, 20]
    assert _ticks(0.09, 1100) == [0.1, 1, 10, 100, 1000]
    assert len(_ticks(1e-9, 1e9)) <= 7
