"""`lathe report`: runs as one page of HTML. It needs nothing but itself, and can reach nothing else.

The page's own policy lets in its style and its script by their hashes, and nothing more: what a model wrote
could neither run nor load anything, even if this file failed to escape it.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

from lathe.errors import UserError
from lathe.jsonl import read_rollouts
from lathe.text.tokenizer import Tokenizer
from lathe.train.curves import NUM_COLORS, chart, picture, step_range, thinned
from lathe.train.runs import Line, Metric, Run, duration, metric_of, sections, written
from lathe.train.samples import Attempt, TokenizerOf, attempt_html, attempts_of, choose

MAX_RUNS = 16
MAX_SAMPLES = 24  # attempts on a page
MAX_SAMPLE_BYTES = 4_000_000  # of HTML; those beyond are left out


def write_report(runs: Sequence[Run], out: Path, tokenizer_of: TokenizerOf, title: str | None = None) -> int:
    """Write the page. Its size in bytes: at most some 5 MB, however long the runs were.

    `tokenizer_of` gives the tokenizer of a rollout's model, or None. Raises UserError, RecordError for a
    damaged file of rollouts.
    """
    html = page(runs, tokenizer_of, title)
    data = html.encode("utf-8", "replace")
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(out)
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror}.") from error
    return len(data)


def write_picture(runs: Sequence[Run], metric: str, out: Path, title: str | None = None) -> None:
    """One metric of these runs as an SVG. Raises UserError when none of them measured it."""
    lines = [run.line(metric) for run in runs]
    if not any(line.steps for line in lines):
        known = dict.fromkeys(each.name for metrics in sections(runs).values() for each in metrics)
        raise UserError(f"No run measured {metric}. They have: {', '.join(known) or 'no step yet'}.")
    svg = picture([line for line in lines if line.steps], metric_of(metric), title)
    try:
        out.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror}.") from error


# The page


def page(runs: Sequence[Run], tokenizer_of: TokenizerOf, title: str | None = None) -> str:
    if len(runs) > MAX_RUNS:
        raise UserError(f"{len(runs)} runs are too many for one page: name at most {MAX_RUNS}.")
    folder = files("lathe.train") / "page"
    style = (folder / "report.css").read_text("utf-8")
    script = (folder / "report.js").read_text("utf-8")
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    name = title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(name)}</title><style>{style}</style></head><body>",
        f"<header><h1>{escape(name)}</h1>{_summary(runs)}</header><main>",
        *_charts(runs),
        _settings(runs),
        *_samples(runs, tokenizer_of),
        f'</main><div id="tip" hidden></div><script type="application/json" id="data">{_data(runs)}</script>',
        f"<script>{script}</script></body></html>\n",
    ]
    return "".join(parts)


def _hash(source: str) -> str:
    return f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"


def _color(number: int) -> int:
    return number % NUM_COLORS


# What came of it

# A column of the summary: its heading, the metric's names, and how its values are summed up.
FIRST_TO_LAST = (
    ("held-out pass rate", ("eval_pass_rate",), 1),
    ("training pass rate", ("pass_rate", "solved"), 10),
    ("reward", ("reward",), 10),
    ("loss", ("loss",), 10),
)


def _summary(runs: Sequence[Run]) -> str:
    columns = [
        ("steps", [f"{len(run.steps):,}" for run in runs]),
        ("time", [duration(run.seconds) if run.seconds else "" for run in runs]),
        *((name, [_first_to_last(run, names, num) for run in runs]) for name, names, num in FIRST_TO_LAST),
        ("largest mismatch", [_largest(run) for run in runs]),
        ("invalid", [_invalid(run) for run in runs]),
    ]
    columns = [column for column in columns if any(column[1])]
    head = "".join(f"<th>{name}</th>" for name, _ in columns)
    rows = []
    for number, run in enumerate(runs):
        cells = "".join(f"<td>{escape(values[number]) or '–'}</td>" for _, values in columns)
        rows.append(f"<tr><th>{_swatch(number)}{escape(run.name)}</th>{cells}</tr>")
    return f'<div class="wide"><table class="summary"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _swatch(number: int) -> str:
    return f'<s class="c{_color(number)}"></s>'


def _finite(run: Run, names: Sequence[str]) -> tuple[list[float], Metric]:
    """The values of the first of these metrics that the run has."""
    for name in names:
        if (line := run.line(name)).steps:
            return [value for value in line.values if math.isfinite(value)], metric_of(name)
    return [], metric_of(names[0])


def _first_to_last(run: Run, names: Sequence[str], num: int) -> str:
    """How a metric went: the mean of its first `num` values, an arrow, that of its last."""
    values, metric = _finite(run, names)
    if not values:
        return ""
    return " → ".join(written(fmean(part), metric.unit) for part in (values[:num], values[-num:]))


def _largest(run: Run) -> str:
    values = run.line("mismatch").values or run.line("largest_mismatch").values
    return written(max(values, key=lambda value: (math.isnan(value), value))) if values else ""


def _invalid(run: Run) -> str:
    values, _ = _finite(run, ("invalid_share", "invalid"))
    return written(fmean(values), "share") if values else ""


# Curves


def _charts(runs: Sequence[Run]) -> Iterator[str]:
    steps = _steps(runs)
    for title, metrics in sections(runs).items():
        yield f'<section><h2>{title}</h2><div class="charts">'
        for metric in metrics:
            yield _figure(runs, metric, steps)
        yield "</div></section>"


def _steps(runs: Sequence[Run]) -> tuple[float, float]:
    """One range for all charts, so that a line through them is one step."""
    return step_range([Line("", tuple(int(step["step"]) for step in run.steps), ()) for run in runs])


def _figure(runs: Sequence[Run], metric: Metric, steps: tuple[float, float]) -> str:
    drawn = [(number, line) for number, run in enumerate(runs) if (line := run.line(metric.name)).steps]
    if all(value == 0 for _, line in drawn for value in line.values):
        picture_of = f'<p class="zero">{written(0.0, metric.unit)} at every step</p>'
    else:
        picture_of = chart(
            [line for _, line in drawn], metric, steps, [_color(number) for number, _ in drawn]
        )
    last = "".join(
        f'<span class="last">{_swatch(number)}{escape(written(line.values[-1], metric.unit))}</span>'
        for number, line in drawn
    )
    about = f"<p>{escape(metric.about)}</p>" if metric.about else ""
    return (
        f'<figure data-metric="{escape(metric.name)}"><figcaption><h3>{escape(metric.title)}</h3>{about}'
        f"</figcaption><div>{last}</div>{picture_of}</figure>"
    )


def _data(runs: Sequence[Run]) -> str:
    """What a pointer over a curve reads, as JSON that can't end its script."""
    metrics = [metric for metrics in sections(runs).values() for metric in metrics]
    start, stop = _steps(runs)
    data: dict[str, Any] = {"runs": [run.name for run in runs], "steps": [start, stop], "metrics": {}}
    for metric in metrics:
        lines = (thinned(run.line(metric.name)) for run in runs)
        data["metrics"][metric.name] = [
            [line.steps, [written(value, metric.unit) for value in line.values]] for line in lines
        ]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


# Settings


def _settings(runs: Sequence[Run]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    if not keys:
        return ""
    differ = [key for key in keys if len({_setting(run, key) for run in runs}) > 1]
    same = [key for key in keys if key not in differ]
    parts = ["<section><h2>Settings</h2>"]
    if differ:
        parts.append("<p>Where these runs differ:</p>" + _table(runs, differ, "differ"))
    if same:
        words = "The same in all" if len(runs) > 1 else "As they were resolved"
        is_open = " open" if not differ and len(same) <= 12 else ""
        summary = f"<summary>{words}: {len(same)} settings</summary>"
        parts.append(f"<details{is_open}>{summary}{_table(runs[:1], same, 'same')}</details>")
    return "".join([*parts, "</section>"])


def _table(runs: Sequence[Run], keys: Sequence[str], kind: str) -> str:
    head = "".join(f"<th>{_swatch(number)}{escape(run.name)}</th>" for number, run in enumerate(runs))
    head = f"<tr><th></th>{head}</tr>" if kind == "differ" else ""
    rows = (
        f"<tr><th>{escape(key)}</th>{''.join(f'<td>{escape(_setting(run, key))}</td>' for run in runs)}</tr>"
        for key in keys
    )
    return f'<div class="wide"><table class="settings {kind}">{head}{"".join(rows)}</table></div>'


def _setting(run: Run, key: str) -> str:
    if key not in run.settings:
        return "–"
    value = run.settings[key]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 400 else f"{text[:400]}…"


# Attempts


def _samples(runs: Sequence[Run], tokenizer_of: TokenizerOf) -> Iterator[str]:
    found = [
        (number, run, _sampled(run, max(MAX_SAMPLES // len(runs), 1))) for number, run in enumerate(runs)
    ]
    if not any(attempts for _, _, attempts in found):
        return
    yield f"<section><h2>Attempts</h2>{LEGEND}"
    room = MAX_SAMPLE_BYTES
    for number, run, attempts in found:
        if attempts and len(runs) > 1:
            yield f'<h3 class="run">{_swatch(number)}{escape(run.name)}</h3>'
        for attempt in attempts:
            html = attempt_html(attempt, _tokenizer(run, attempt.rollout.model, tokenizer_of))
            room -= len(html.encode("utf-8", "replace"))
            if room < 0:
                yield '<p class="note">The others are left out: the page is long.</p></section>'
                return
            yield html
    yield "</section>"


LEGEND = """<div class="legend">
<fieldset><legend>Tint what was trained by</legend>
<label><input type="radio" name="tint" value="advantage" checked>advantage</label>
<label><input type="radio" name="tint" value="surprise">surprise</label></fieldset>
<p class="key by-advantage"><span class="up a4">better</span><span class="flat">as its group</span>
<span class="down a4">worse</span><span class="none">trains nothing</span></p>
<p class="key by-surprise"><span class="l0">certain</span><span class="l1">p &lt; .95</span><span class="l2">p
&lt; .7</span><span class="l3">p &lt; .3</span><span class="l4">p &lt; .05</span></p></div>"""


def _tokenizer(run: Run, model: str | None, tokenizer_of: TokenizerOf) -> Tokenizer | None:
    """The model's, or that of the model which the run made."""
    names = [model, *run.tokenizer_folders()]
    return next((found for name in names if (found := tokenizer_of(name)) is not None), None)


def _sampled(run: Run, num: int) -> list[Attempt]:
    """A few attempts from the first, a middle and the last step that kept them."""
    kept = sorted(run.rollout_files().items())
    if not kept:
        return []
    places = sorted({0, len(kept) // 2, len(kept) - 1})[-num:]
    each = min(max(num // len(places), 1), 3)
    chosen = []
    for place in places:
        step, path = kept[place]
        chosen += choose(attempts_of(step, read_rollouts(path)), each)
    return chosen
