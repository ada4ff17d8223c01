"""Curves as SVG: small ones for a report's page, and one that stands alone for a document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

from lathe.train.runs import Line, Metric, scale_label

NUM_COLORS = 8
MAX_POINTS = 400  # of a line; more than a small picture has columns
DOTS_UP_TO = 40  # points that are few are marked

# Of a picture alone; the page has the same in its style.
LIGHT = ("#2f5fd0", "#c2600c", "#1d8a5f", "#a83a8c", "#7d6b0c", "#6a55cf", "#b93838", "#2f7d95")
DARK = ("#7fa6ff", "#f0a35e", "#5fd0a0", "#e58acb", "#d3c05a", "#ab9dff", "#ff8f86", "#7cc8dc")


@dataclass(frozen=True)
class Frame:
    """Where a chart's values lie: [x0, x1] by [y0, y1] in a picture of `width` by `height`, less its margins
    (left, top, right, bottom)."""

    x0: float
    x1: float
    y0: float
    y1: float
    width: int
    height: int
    margins: tuple[int, int, int, int]

    def x(self, step: float) -> float:
        left, _, right, _ = self.margins
        return left + (step - self.x0) / (self.x1 - self.x0) * (self.width - left - right)

    def y(self, value: float) -> float:
        _, top, _, bottom = self.margins
        share = (min(max(value, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return self.height - bottom - share * (self.height - top - bottom)


def step_range(lines: Sequence[Line]) -> tuple[float, float]:
    """The first and last step of all; they differ."""
    steps = [step for line in lines for step in line.steps] or [0]
    return min(steps), max(max(steps), min(steps) + 1)


def value_range(lines: Sequence[Line], metric: Metric) -> tuple[float, float]:
    """What the values need, on round numbers; they differ. Pass rates have all of 0 to 1."""
    values = [value for line in lines for value in line.values if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    if metric.name.endswith("pass_rate") or metric.name == "solved":
        low, high = min(low, 0.0), max(high, 1.0)
    elif 0 < low < 0.6 * high or metric.unit in ("share", "tokens", "rate", "seconds"):
        low = min(low, 0.0)
    if low == high:
        spread = abs(low) or 1.0
        low, high = (0.0, spread) if low == 0 else (low - spread / 2, high + spread / 2)
    step = tick_step(low, high)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def tick_step(low: float, high: float, num: int = 4) -> float:
    """A round distance of about `num` marks: 1, 2, 2.5 or 5 times a power of ten."""
    rough = max((high - low) / num, 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)


def ticks(low: float, high: float, num: int = 4, whole: bool = False) -> list[float]:
    """Round numbers within [low, high]."""
    step = max(tick_step(low, high, num), 1.0 if whole else 0.0)
    step = float(math.ceil(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [(first + n) * step for n in range(int((high - first * step) / step + 1e-9) + 1)]


def thinned(line: Line, most: int = MAX_POINTS) -> Line:
    """Fewer points, with every peak: of each stretch the first, the lowest and the highest, and what is not
    finite."""
    if len(line.steps) <= most:
        return line
    size = math.ceil(len(line.steps) / (most // 3))
    kept = set()
    for start in range(0, len(line.steps), size):
        places = range(start, min(start + size, len(line.steps)))
        finite = [place for place in places if math.isfinite(line.values[place])] or [start]
        strange = next((place for place in places if not math.isfinite(line.values[place])), start)
        kept |= {strange, min(finite, key=line.values.__getitem__), max(finite, key=line.values.__getitem__)}
    kept.add(len(line.steps) - 1)
    places_kept = sorted(kept)
    return replace(
        line,
        steps=tuple(line.steps[place] for place in places_kept),
        values=tuple(line.values[place] for place in places_kept),
    )


def smoothed(line: Line) -> Line | None:
    """The mean over a 25th of the line to either side. None where there are too few points to need one."""
    if len(line.steps) <= DOTS_UP_TO:
        return None
    reach = max(len(line.steps) // 25, 2)
    sums, counts = [0.0], [0]
    for value in line.values:
        is_finite = math.isfinite(value)
        sums.append(sums[-1] + (value if is_finite else 0.0))
        counts.append(counts[-1] + is_finite)
    means = []
    for place in range(len(line.values)):
        start, stop = max(place - reach, 0), min(place + reach + 1, len(line.values))
        num = counts[stop] - counts[start]
        means.append((sums[stop] - sums[start]) / num if num else math.nan)
    return replace(line, values=tuple(means))


def path_of(line: Line, frame: Frame) -> str:
    """The line as an SVG path; it breaks where a value isn't finite."""
    words, pen = [], "M"
    for step, value in zip(line.steps, line.values, strict=True):
        if math.isfinite(value):
            words.append(f"{pen}{frame.x(step):.1f} {frame.y(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(words)


def _marks(line: Line, color: int, frame: Frame) -> str:
    """Dots where points are few, and a cross at the top where a value isn't finite."""
    words = []
    finite = [(s, v) for s, v in zip(line.steps, line.values, strict=True) if math.isfinite(v)]
    if len(finite) <= DOTS_UP_TO:
        words += [
            f'<circle class="c{color}" cx="{frame.x(s):.1f}" cy="{frame.y(v):.1f}" r="2.2"/>'
            for s, v in finite
        ]
    strange = [s for s, v in zip(line.steps, line.values, strict=True) if not math.isfinite(v)]
    words += [
        f'<text class="c{color} odd" x="{frame.x(s):.1f}" y="{frame.margins[1] + 9}">×</text>'
        for s in strange[:: max(len(strange) // 50, 1)]
    ]
    return "".join(words)


def body(lines: Sequence[Line], metric: Metric, frame: Frame, colors: Sequence[int], num_x: int = 5) -> str:
    """Grid, axes and lines, without the <svg> around them."""
    left, _, right, bottom = frame.margins
    base = frame.height - bottom
    parts = []
    for tick in ticks(frame.y0, frame.y1):
        y = f"{frame.y(tick):.1f}"
        label = scale_label(tick, metric.unit)
        parts.append(f'<path class="grid" d="M{left} {y}H{frame.width - right}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{y}" dy="3.5" text-anchor="end">{label}</text>')
    for tick in ticks(frame.x0, frame.x1, num_x, whole=True):
        x = f"{frame.x(tick):.1f}"
        parts.append(f'<text class="tick" x="{x}" y="{base + 15}" text-anchor="middle">{int(tick):,}</text>')
    drawn = list(zip(lines, colors, strict=True))
    for line, color in drawn:
        smooth = smoothed(line)
        if smooth is not None:
            parts.append(f'<path class="line c{color} raw" d="{path_of(thinned(line), frame)}"/>')
        shown = smooth or line
        parts.append(f'<path class="line c{color}" d="{path_of(thinned(shown), frame)}"/>')
        parts.append(_marks(thinned(line), color, frame))
    return "".join(parts)


def chart(lines: Sequence[Line], metric: Metric, steps: tuple[float, float], colors: Sequence[int]) -> str:
    """A small chart for a page, which has the classes' colours. Its width is the page's."""
    frame = Frame(*steps, *value_range(lines, metric), 420, 190, (46, 8, 10, 22))
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(metric.title)}">'
        f"{body(lines, metric, frame, colors)}"
        f'<path class="cross" d="M0 8V{frame.height - 22}"/></svg>'
    )


def picture(lines: Sequence[Line], metric: Metric, title: str | None = None) -> str:
    """One metric's curves as an SVG file of its own, light or dark as its reader has it."""
    colors = [number % NUM_COLORS for number in range(len(lines))]
    longest = max((len(line.name) for line in lines), default=0)
    right = min(24 + 7 * longest, 260)
    frame = Frame(*step_range(lines), *value_range(lines, metric), 760, 380, (62, 56, right, 50))
    labels = []
    for (line, color), y in zip(
        zip(lines, colors, strict=True), _apart([_end(line, frame) for line in lines]), strict=True
    ):
        if line.steps:
            labels.append(
                f'<text class="c{color} name" x="{frame.width - right + 10}" y="{y:.1f}" dy="4">'
                f"{escape(line.name[:34])}</text>"
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {frame.height}" '
        f'width="{frame.width}" height="{frame.height}" role="img">'
        f"<title>{escape(title or metric.title)}</title><style>{_style()}</style>"
        f'<rect class="paper" width="{frame.width}" height="{frame.height}" rx="10"/>'
        f'<text class="title" x="20" y="32">{escape(title or metric.title)}</text>'
        f"{body(lines, metric, frame, colors, 8)}{''.join(labels)}"
        f'<text class="tick" x="{frame.width - right}" y="{frame.height - 14}" text-anchor="end">step</text>'
        "</svg>\n"
    )


def _end(line: Line, frame: Frame) -> float:
    values = [value for value in (smoothed(line) or line).values if math.isfinite(value)]
    return frame.y(values[-1]) if values else 0.0


def _apart(heights: Sequence[float], distance: float = 16.0) -> list[float]:
    """The same heights, pushed down as far as labels need room, and back up from the bottom."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=moved.__getitem__)
    for before, place in pairwise(order):
        moved[place] = max(moved[place], moved[before] + distance)
    if order:
        over = max(moved[order[-1]] - 340.0, 0.0)
        for place in reversed(order):
            moved[place] = max(moved[place] - over, 60.0) if over else moved[place]
    return moved


def _style() -> str:
    def colors(palette: Sequence[str]) -> str:
        rules = [(f"c{n}", color) for n, color in enumerate(palette)]
        return "".join(
            f".line.{c}{{stroke:{color}}}text.{c},circle.{c}{{fill:{color}}}" for c, color in rules
        )

    return f"{STYLE}{colors(LIGHT)}@media(prefers-color-scheme:dark){{{DARK_STYLE}{colors(DARK)}}}"


STYLE = (
    "text{font:13px ui-sans-serif,system-ui,-apple-system,Segoe UI,Roboto,sans-serif;fill:#24231f;"
    "font-variant-numeric:tabular-nums}.paper{fill:#fff}.title{font-size:17px;font-weight:600}"
    ".tick{fill:#77746b;font-size:12px}.name{font-weight:500}.grid{stroke:#8886;stroke-width:.6}"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round}.raw{stroke-width:1;opacity:.3}"
)
DARK_STYLE = "text{fill:#e8e6e0}.paper{fill:#1c1d20}.tick{fill:#9b988f}"
