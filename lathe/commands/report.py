"""`lathe report`: runs of a trainer as a page, or one of their curves as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lathe.commands.opening import stderr


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs; several are laid over each other."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page.")] = Path("report.html"),
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one curve as a picture instead of the page.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Which curve --svg draws.")] = "eval_pass_rate",
    title: Annotated[str | None, typer.Option(help="The heading. As the runs are called.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Whose tokenizer to read the ids with. As the records say.")
    ] = None,
) -> None:
    """Write what runs did into one HTML page: curves, settings, attempts. It needs nothing but itself."""
    from lathe.terminal.show import tokenizers
    from lathe.train.report import write_picture, write_report
    from lathe.train.runs import read_runs

    read, console = read_runs(runs), stderr()
    if svg is not None:
        write_picture(read, metric, svg, title)
        console.print(f"{svg}: {metric} of {len(read)} runs", highlight=False, soft_wrap=True)
        return
    num_bytes = write_report(read, out, tokenizers(model), title)
    console.print(
        f"{out}: {num_bytes / 1000:,.0f} kB. Open it in a browser.", highlight=False, soft_wrap=True
    )
