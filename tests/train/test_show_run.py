"""A run in the terminal."""

import io
import math

import pytest
from rich.console import Console
from run_folders import attempt, make_run
from typer.testing import CliRunner

from lathe.cli import app
from lathe.errors import UserError
from lathe.log import RunLog
from lathe.train.runs import Line
from lathe.train.show import braille, follow_run, show_run


def shown(folder, width=100):
    text = io.StringIO()
    show_run(folder, Console(file=text, width=width))
    return text.getvalue()


def test_braille_draws_a_line():
    rising = Line("a", tuple(range(8)), tuple(float(step) for step in range(8)))
    assert braille(rising, (0, 7), (0.0, 7.0), 4, 2) == ["⠀⠀⡠⠊", "⡠⠊⠀⠀"]
    broken = Line("a", (0, 1, 2), (math.nan, math.inf, 0.0))
    assert braille(broken, (0, 2), (0.0, 1.0), 2, 1) == ["⠀⢀"]
    assert braille(Line("a", (5,), (1.0,)), (5, 5), (0.0, 1.0), 1, 1) == ["⠁"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_run_fits_its_terminal(tmp_path, width):
    run = make_run(tmp_path / "a", pass_rate=lambda step: step / 11, mismatch=lambda step: 0.0)
    lines = shown(run, width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert lines[0] == "a  12 steps  24 s"
    assert "Pass rate in training" in text
    assert "0 at every step: mismatch" in text
    assert lines[-1].split()[:3] == ["11", "1", "100%"]


def test_a_run_that_has_not_begun(tmp_path):
    assert "No step is done yet." in shown(make_run(tmp_path / "a", num_steps=0))


def test_following_shows_each_new_step(tmp_path):
    from run_folders import Recipe

    folder, text, waits = tmp_path / "a", io.StringIO(), []
    with RunLog(folder, Recipe(), say=lambda line: None) as log:

        def wait():
            if len(waits) == 3:
                raise KeyboardInterrupt
            waits.append(None)
            if len(waits) < 3:
                log.step(len(waits), loss=1.0)

        follow_run(folder, Console(file=text, width=60, height=30, force_terminal=True), wait)
    shown = text.getvalue()
    assert [f"{number} steps" in shown for number in (0, 1, 2)] == [True] * 3
    with pytest.raises(UserError, match="needs a terminal"):
        follow_run(folder, Console(file=io.StringIO()), wait)


def test_the_command_line_knows_a_run_from_rollouts(tmp_path):
    run = make_run(tmp_path / "a", attempts=[attempt("Hello.")])
    assert "12 steps" in CliRunner().invoke(app, ["show", str(run)]).output
    assert "Hello." in CliRunner().invoke(app, ["show", str(run / "rollouts")]).output
    refused = CliRunner().invoke(app, ["show", str(run / "rollouts"), "--follow"])
    assert refused.exit_code == 1
