"""`lathe show`: rollouts, or a run, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lathe.commands.opening import stdout


def show(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A .jsonl of rollouts, a folder of them, or the folder of a run."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Whose tokenizer to read the ids with. As the records say.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Leave out no line of what the model read.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Show the tokens' ids, too.")] = False,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="Show each sampled token with its log-probability.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Of a run: draw each new step.")] = False,
) -> None:
    """Show rollouts: what was said, and in green what would be trained on. Of a run: its curves."""
    from lathe.errors import UserError
    from lathe.jsonl import read_rollouts
    from lathe.log import is_run

    out = stdout()
    if is_run(path):
        from lathe.train.show import follow_run, show_run

        follow_run(path, out) if follow else show_run(path, out)
        return
    if follow:
        raise UserError(f"--follow draws a run, and {path} is none: it holds no metrics.jsonl.")
    from lathe.terminal.show import Detail, show_rollout, tokenizers

    tokenizer_of = tokenizers(model)
    for rollout in read_rollouts(path):
        show_rollout(rollout, tokenizer_of(rollout.model), out, Detail(full, ids, logprobs))
