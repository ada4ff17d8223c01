"""The command line. A verb is a function in `commands/`; what is heavy is imported when a verb needs it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import lathe
from lathe.commands.attempt import attempt
from lathe.commands.chat import chat
from lathe.commands.code import CODE_EXITS, code
from lathe.commands.complete import complete
from lathe.commands.convert import convert
from lathe.commands.doctor import doctor
from lathe.commands.fleet import fleet
from lathe.commands.generate import generate
from lathe.commands.info import info
from lathe.commands.kernels import kernels
from lathe.commands.make import make
from lathe.commands.make_repository import repository
from lathe.commands.opening import stderr
from lathe.commands.report import report
from lathe.commands.rl import rl
from lathe.commands.serve import serve
from lathe.commands.show import show
from lathe.commands.training import pretrain, sft
from lathe.errors import LatheError


class Verbs(TyperGroup):
    """Shows what a user did wrong as one line. --debug shows where it was noticed."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LatheError as error:
            if ctx.params["debug"]:
                raise
            stderr().print(f"[bold red]Error:[/bold red] [red]{escape(str(error))}[/red]", soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def main_options(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    """Run, serve and convert open coding models."""
    if version:
        print(f"lathe {lathe.__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


app.command()(serve)
app.command()(chat)
app.command(epilog=CODE_EXITS)(code)
app.command()(generate)
app.command()(complete)
app.command()(attempt)
app.command()(rl)
app.command()(show)
app.command()(report)
app.command()(sft)
app.command()(pretrain)
app.command()(convert)
app.command()(info)
app.command()(doctor)
app.add_typer(kernels, name="kernels")
make.command()(repository)
app.add_typer(make, name="make")
app.command()(fleet)


def escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def main() -> None:
    """The console script."""
    if sys.argv[1:2] in (["chat"], ["generate"], ["serve"]):
        from lathe.terminal.start import preload_torch

        preload_torch()
    app(prog_name="lathe")


if __name__ == "__main__":
    main()
