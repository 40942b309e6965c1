"""A small chart with two logarithmic axes as SVG text, for pages that must need nothing else."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 460, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 48
MOST_TICKS = 7

Point = tuple[float, float]


class LogChart:
    """Collects what is drawn, and writes it out.

    Args:
        x_range: Smallest and largest value of the horizontal axis, positive.
        y_range: The same of the vertical one.
        x_label: What the axis shows.
        y_label: The same.
        title: Read out in the place of the picture.
        falling: The horizontal axis falls from left to right.
    """

    def __init__(
        self,
        x_range: Point,
        y_range: Point,
        x_label: str,
        y_label: str,
        title: str,
        *,
        falling: bool = False,
    ) -> None:
        self._x, self._y = _widened(x_range), _widened(y_range)
        self._falling = falling
        self._title = title
        self._labels = (x_label, y_label)
        self._parts: list[str] = []

    def line(self, points: Sequence[Point], kind: str) -> None:
        """Draws a line; `kind` is a class of the page's style."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self._at, points))
        self._parts.append(f'<polyline class="{kind}" points="{path}"/>')

    def band(self, lower: Sequence[Point], upper: Sequence[Point], kind: str) -> None:
        """Fills the area between two lines, as far as it is inside."""
        edge = [*lower, *reversed(upper)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self._at, edge))
        self._parts.append(f'<polygon class="{kind}" points="{path}"/>')

    def dot(self, point: Point, radius: float, kind: str, note: str = "") -> None:
        """Draws a dot with a note that shows when it is pointed at."""
        x, y = self._at(point)
        self._parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">'
            f"<title>{escape(note)}</title></circle>"
        )

    def text(self, point: Point, words: str, *, dx: float = 8, dy: float = -6) -> None:
        """Writes beside a point, on its other side where the chart ends."""
        x, y = self._at(point)
        fits = x + dx + 6.5 * len(words) < WIDTH
        anchor, x, dy = ("start", x + dx, dy) if fits else ("end", x - dx, 16.0)
        self._parts.append(
            f'<text x="{x:.1f}" y="{y + dy:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def render(self) -> str:
        """Returns the chart as one `<svg>` element."""
        frame = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{_depth()}"'
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self._title)}">'
            f'{self._axes()}<svg {frame} viewBox="{LEFT} {TOP} {WIDTH - LEFT - RIGHT} {_depth()}">'
            f"{''.join(self._parts)}</svg></svg>"
        )

    def _at(self, point: Point) -> Point:
        across = _place(point[0], self._x)
        across = 1 - across if self._falling else across
        x = LEFT + (WIDTH - LEFT - RIGHT) * across
        return x, HEIGHT - BOTTOM - _depth() * _place(point[1], self._y)

    def _axes(self) -> str:
        bottom, middle = HEIGHT - BOTTOM, TOP + _depth() / 2
        parts = [
            f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{_depth()}"/>'
        ]
        for value in _ticks(*self._x):
            x, _ = self._at((value, self._y[0]))
            parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{value:,g}</text>'
            )
        for value in _ticks(*self._y):
            _, y = self._at((self._x[0], value))
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,g}</text>'
            )
        across = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            f'<text x="{across}" y="{HEIGHT - 10}" text-anchor="middle">'
            f"{escape(self._labels[0])}</text>"
            f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self._labels[1])}</text>"
        )
        return "".join(parts)


def _depth() -> float:
    return HEIGHT - TOP - BOTTOM


def _widened(ends: Point) -> Point:
    low, high = ends
    margin = max((high / low) ** 0.07, 1.05)
    return low / margin, high * margin


def _place(value: float, ends: Point) -> float:
    share = math.log(value / ends[0]) / math.log(ends[1] / ends[0])
    return min(max(share, -1.0), 2.0)  # Far outside is cut off, and must not overflow.


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers: 1, 2 and 5 times powers of ten, or the powers alone where those are many."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [float(f"{tick:.3g}") for tick in ticks if low <= tick <= high]
        if len(ticks) <= MOST_TICKS:
            return ticks
    return ticks[:: math.ceil(len(ticks) / MOST_TICKS)]
