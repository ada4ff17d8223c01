"""`lathe complete`: fill in what belongs at a cursor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lathe.commands.opening import load, stderr
from lathe.commands.options import Device, Dtype, KeepFp8, MaxContext, PackCache, Quantized, Yarn
from lathe.errors import UserError


def complete(
    place: Annotated[
        str, typer.Argument(metavar="FILE:LINE:COL", help="The cursor: before that character, from 1.")
    ],
    model: Annotated[
        str | None, typer.Option(help="One that fills in the middle, such as qwen3-coder-30b.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask a running server instead of loading a model.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LATHE_API_KEY", help="The server's key.")] = None,
    context: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Show this file, too. May be repeated; the last matters most."),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Read no other file. Else: nearby ones of the git repository.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 128,
    max_context: MaxContext = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    yarn: Yarn = None,
    keep_fp8: KeepFp8 = False,
    quantize: Quantized = "auto",
    pack_cache: PackCache = None,
) -> None:
    """Fill in what belongs at a cursor. The text alone goes to standard output."""
    from lathe.terminal.complete import ask_server, fill_in, parse_place, prompt_at
    from lathe.terminal.talk import CONTROLS

    if (model is None) == (server is None):
        raise UserError("Say who fills it in: --model NAME loads one, --server URL asks a running server.")
    prompt = prompt_at(parse_place(place), [] if alone else context or None)

    def write(text: str) -> None:
        sys.stdout.write(text.translate(CONTROLS) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    if server is not None:
        write(ask_server(server, prompt, max_tokens, api_key))
    else:
        with load(
            str(model), max_context, device, dtype, yarn, keep_fp8, quantize, pack_cache, stderr()
        ) as llm:
            for text in fill_in(llm, prompt, max_tokens):
                write(text)
