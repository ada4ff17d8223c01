"""`lathe doctor`: what this machine can do."""

from __future__ import annotations

from typing import Annotated

import typer

from lathe.commands.opening import stdout


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Write it as JSON.")] = False,
) -> None:
    """Say what this machine can do, and why not: sandboxes, Python, torch, GPU. Exits 1 without sandboxes."""
    from lathe.terminal import doctor

    found = doctor.examine()
    doctor.show(found, stdout()) if not as_json else typer.echo(found.to_json())
    if found.sandboxes.auto is None:
        raise typer.Exit(1)
