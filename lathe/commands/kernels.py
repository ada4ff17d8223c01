"""`lathe kernels`: the compiled CPU kernels."""

from __future__ import annotations

from typing import Annotated

import typer

from lathe.commands.opening import stderr
from lathe.errors import UserError

kernels = typer.Typer(invoke_without_command=True)


@kernels.callback()
def kernels_in_use(ctx: typer.Context) -> None:
    """Say which compiled CPU kernels are in use; `build` compiles them. Exits 1 where there are none."""
    from lathe.kernels.cpu import library

    if ctx.invoked_subcommand is None:
        typer.echo(library.describe())
        if library.load() is None:
            raise typer.Exit(1)


@kernels.command("build")
def build_kernels(
    force: Annotated[bool, typer.Option("--force", help="Compile them even where nothing changed.")] = False,
) -> None:
    """Compile the CPU kernels, as for a compiler that was installed after Lathe. CXX chooses the compiler."""
    from lathe.kernels.cpu import build, library

    try:
        with stderr().status("Compiling …"):
            build.build(force=force)
    except build.BuildFailed as error:
        raise UserError(f"No CPU kernels were compiled: {error}") from error
    typer.echo(library.describe())
