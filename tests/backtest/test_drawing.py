import re
import xml.etree.ElementTree as ET
from importlib import resources

import pytest

from service.backtest.drawing import Line, Tick, chart


def test_a_chart_is_well_formed_and_says_its_values() -> None:
    lines = [
        Line("<live>", [1, 2, 3], [0.1, 0.3, 0.2], [0.05, 0.05, 0.05]),
        Line("memory", [1, 2, 3], [0.1, 0.1, 0.1]),
    ]
    drawn = ET.fromstring(chart(lines, "period", "Recall & more", [Tick(2, "hold", "hold")]))
    tags = [element.tag for element in drawn.iter()]
    assert (tags.count("polyline"), tags.count("polygon"), tags.count("circle")) == (2, 1, 6)
    titles = [element.text for element in drawn.iter("title")]
    assert "<live>: 0.3 at 2" in titles
    assert "hold" in titles


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([5], [0.0]), ([1, 1], [0.2, 0.2]), ([1, 1e6], [1e-9, 3e7])]
)
def test_every_point_is_inside(x: list[float], y: list[float]) -> None:
    drawn = ET.fromstring(chart([Line("one", x, y)], "x", "y"))
    for point in drawn.iter("circle"):
        assert 0 <= float(point.attrib["cx"]) <= 860
        assert 0 <= float(point.attrib["cy"]) <= 300


def test_every_model_of_the_longest_run_has_a_colour() -> None:
    """A continual run with a retrain and a streamed model beside the others has nine lines."""
    frame = resources.files("service.backtest").joinpath("page.html").read_text(encoding="utf-8")
    for line in range(9):
        assert f".c{line} {{ --c: var(--p{line}); }}" in frame
        assert len(re.findall(f"--p{line}: #", frame)) == 2  # by day and by night
