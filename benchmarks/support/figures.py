"""SVG figures by hand: a bar chart, a line chart and a heat map, with the numbers written beside them. No dependency."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

import msgspec

COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#64748b", "#db2777")
_HOTTEST = 0.5
_FONT = "font-family='system-ui, sans-serif' font-size='13'"


class Bar(msgspec.Struct, frozen=True):
    """One bar. colour: an index into COLOURS."""

    label: str
    value: float
    colour: int = 0


class Line(msgspec.Struct, frozen=True):
    """One line of (x, y) points."""

    label: str
    points: tuple[tuple[float, float], ...]


def bar_chart(title: str, unit: str, bars: Sequence[Bar]) -> str:
    """Horizontal bars from zero, each with its value."""
    width, left, row = 820, 300, 30
    height = 60 + row * len(bars)
    largest = max((bar.value for bar in bars), default=0) or 1
    parts = [_text(16, 28, f"{title} ({unit})", weight="bold")]
    for index, bar in enumerate(bars):
        y = 48 + row * index
        length = (width - left - 110) * max(bar.value, 0) / largest
        parts += [
            _text(left - 10, y + 15, bar.label, anchor="end"),
            f"<rect x='{left}' y='{y}' width='{length:.1f}' height='20' fill='{COLOURS[bar.colour % len(COLOURS)]}'/>",
            _text(left + length + 8, y + 15, _number(bar.value)),
        ]
    return _document(width, height, parts)


def line_chart(title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> str:
    """Lines over logarithmic axes; every x and y must be positive. Points are marked, axes carry powers of two or ten."""
    width, height = 820, 460
    box = (80, 50, width - 190, height - 60)
    points = [point for line in lines for point in line.points]
    parts = [_text(16, 28, title, weight="bold")]
    if points:
        scale_x = _Scale([x for x, _ in points], box[0], box[2])
        scale_y = _Scale([y for _, y in points], box[3], box[1])
        parts += _axes(box, scale_x, scale_y)
        for index, line in enumerate(lines):
            parts += _line(line, index, scale_x, scale_y, box)
    parts += [
        _text((box[0] + box[2]) / 2, height - 14, x_label, anchor="middle"),
        _text(18, (box[1] + box[3]) / 2, y_label, anchor="middle", turned=True),
    ]
    return _document(width, height, parts)


def heat_map(
    title: str, columns: Sequence[str], rows: Sequence[str], values: Mapping[tuple[str, str], tuple[float, str]]
) -> str:
    """Shares by (row, column), each with a word below it: white for nothing, red for `_HOTTEST` and beyond."""
    left, top, wide, high = 230, 64, 78, 40
    width, height = left + wide * len(columns) + 20, top + high * len(rows) + 20
    parts = [_text(16, 28, title, weight="bold")]
    parts += [
        _text(left + wide * (place + 0.5), top - 8, column, anchor="middle") for place, column in enumerate(columns)
    ]
    for line, row in enumerate(rows):
        y = top + high * line
        parts.append(_text(left - 10, y + 24, row, anchor="end"))
        for place, column in enumerate(columns):
            if (row, column) not in values:
                continue
            value, word = values[row, column]
            pale = round(255 * (1 - min(max(value, 0.0) / _HOTTEST, 1.0)))
            x = left + wide * place
            parts += [
                f"<rect x='{x}' y='{y}' width='{wide - 2}' height='{high - 2}' fill='rgb(255,{pale},{pale})' stroke='#cbd5e1'/>",
                _text(x + wide / 2, y + 16, f"{value:.0%}", anchor="middle"),
                _text(x + wide / 2, y + 32, word, anchor="middle"),
            ]
    return _document(width, height, parts)


class _Scale:
    """Logarithmic from the values' range to pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float):
        self.low, self.high = min(values), max(values)
        if self.low == self.high:
            self.low, self.high = self.low / 2, self.high * 2
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self._start + (self._end - self._start) * share

    def ticks(self) -> list[float]:
        base = 2.0 if self.high / self.low < 1000 else 10.0
        first, last = math.ceil(math.log(self.low, base) - 1e-9), math.floor(math.log(self.high, base) + 1e-9)
        return [base**power for power in range(first, last + 1)]


def _axes(box: tuple[float, float, float, float], scale_x: _Scale, scale_y: _Scale) -> list[str]:
    left, top, right, bottom = box
    parts = [f"<path d='M{left},{top} V{bottom} H{right}' fill='none' stroke='#475569'/>"]
    for tick in scale_x.ticks():
        parts.append(_text(scale_x(tick), bottom + 20, _number(tick), anchor="middle"))
    for tick in scale_y.ticks():
        y = scale_y(tick)
        parts.append(f"<path d='M{left},{y:.1f} H{right}' stroke='#e2e8f0'/>")
        parts.append(_text(left - 8, y + 4, _number(tick), anchor="end"))
    return parts


def _line(
    line: Line, index: int, scale_x: _Scale, scale_y: _Scale, box: tuple[float, float, float, float]
) -> list[str]:
    colour = COLOURS[index % len(COLOURS)]
    places = [(scale_x(x), scale_y(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{colour}'/>" for x, y in places]
    legend = _text(box[2] + 12, box[1] + 16 + 22 * index, line.label, colour=colour)
    return [f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>", *marks, legend]


def _document(width: int, height: int, parts: Sequence[str]) -> str:
    frame = f"<rect width='{width}' height='{height}' fill='white'/>"
    opening = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>"
    )
    return "\n".join([opening, frame, *parts, "</svg>", ""])


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = "#0f172a",
    turned: bool = False,
) -> str:
    turn = f" transform='rotate(-90 {x:.1f} {y:.1f})'" if turned else ""
    place = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-weight='{weight}' fill='{colour}'"
    return f"<text {place} {_FONT}{turn}>{escape(text)}</text>"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
