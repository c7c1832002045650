"""Figures are well-formed and show what they are given."""

from xml.etree import ElementTree as ET

from benchmarks.support.figures import Bar, Line, bar_chart, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_bar_chart_is_well_formed_and_escapes_labels():
    svg = bar_chart("Output <&>", "tokens/s", [Bar("a < b & c", 10.0), Bar("'quoted'", 5.0, 9)])
    assert "a < b & c" in texts(svg)
    assert "'quoted'" in texts(svg)


def test_bars_are_in_proportion_to_their_values():
    rects = list(ET.fromstring(bar_chart("t", "s", [Bar("a", 10.0), Bar("b", 2.5)])).iter(f"{SVG}rect"))
    long, short = (float(rect.get("width")) for rect in rects[1:])
    assert abs(long / short - 4) < 0.01


def test_charts_of_nothing_and_of_zeros_are_well_formed():
    ET.fromstring(bar_chart("t", "s", []))
    ET.fromstring(bar_chart("t", "s", [Bar("a", 0.0)]))
    ET.fromstring(line_chart("t", "x", "y", []))


def test_line_chart_marks_each_point_and_names_each_line():
    lines = [Line("cached", ((64.0, 1.5), (4096.0, 1.6))), Line("no cache", ((64.0, 2.0), (4096.0, 128.0)))]
    svg = line_chart("Time per token", "context", "ms", lines)
    assert len(list(ET.fromstring(svg).iter(f"{SVG}circle"))) == 4
    assert {"cached", "no cache", "4,096"} <= set(texts(svg))


def test_a_line_of_one_point_is_well_formed():
    ET.fromstring(line_chart("t", "x", "y", [Line("a", ((64.0, 2.0),))]))
