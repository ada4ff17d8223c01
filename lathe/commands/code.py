"""`lathe code`: the coding agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lathe.commands.opening import load, stderr
from lathe.commands.options import (
    Device,
    Dtype,
    KeepFp8,
    MaxContext,
    PackCache,
    Quantized,
    Seed,
    Temperature,
    Yarn,
)
from lathe.errors import UserError

CODE_EXITS = (
    "Exit codes of -p: 0 done, 1 a mistake in how it was called, 53 out of turns, 54 out of tokens, 55 out "
    "of time, 56 it went in circles, 57 the model can't be reached or failed, 58 the sandbox failed, 59 the "
    "window is full, 60 replies were cut again and again, 130 interrupted."
)


def code(
    prompt: Annotated[
        str | None, typer.Argument(help="The first turn; with -p the only one. -: stdin.")
    ] = None,
    headless: Annotated[
        bool, typer.Option("-p", "--print", help="No terminal: do one turn, print the answer, leave.")
    ] = False,
    model: Annotated[
        str,
        typer.Option("-m", "--model", metavar="NAME_OR_URL", help="smollm2, …, or http://localhost:8000/v1"),
    ] = "smollm2",
    model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the models at that URL. The first it lists.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LATHE_API_KEY", help="The server's key.")] = None,
    mode: Annotated[
        str, typer.Option(help="What is asked for before it is done: plan, ask, auto-edit or yolo.")
    ] = "ask",
    yolo: Annotated[
        bool, typer.Option("--yolo", help="--mode yolo: ask nothing. The sandbox stays.")
    ] = False,
    cwd: Annotated[Path, typer.Option(metavar="DIR", help="The project's folder.")] = Path(),
    go_on: Annotated[
        bool, typer.Option("-c", "--continue", help="Go on with this project's last session.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option("-r", "--resume", metavar="ID", help="Go on with this one.")
    ] = None,
    fork: Annotated[bool, typer.Option("--fork", help="With -c or -r: go on with a copy of it.")] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="Of -p: text, json or stream-json.")] = "text",
    max_turns: Annotated[
        int | None, typer.Option(min=1, help="Most replies of the model for one turn.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens that it may say for one turn.")
    ] = None,
    max_time: Annotated[float | None, typer.Option(min=0.1, help="Most seconds for one turn.")] = None,
    network: Annotated[
        str, typer.Option(help="What commands reach: none, loopback, or egress:HOST,… as in egress:pypi.org")
    ] = "none",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="Another folder that commands may write; PATH:ro only read. Repeatable."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="The sandbox: auto, namespace, landlock or docker.")] = "auto",
    no_sandbox: Annotated[
        bool, typer.Option("--no-sandbox", help="Run commands as you, unguarded. Know what you do.")
    ] = False,
    mcp: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="MCP servers to start, not in the sandbox. May be repeated."),
    ] = None,
    temperature: Temperature = None,
    seed: Seed = None,
    max_context: MaxContext = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    yarn: Yarn = None,
    keep_fp8: KeepFp8 = False,
    quantize: Quantized = "auto",
    pack_cache: PackCache = None,
) -> None:
    """Let a model work on a project: a session in the terminal, or one turn with -p."""
    import logging

    from lathe.terminal.code import CodeOptions
    from lathe.terminal.code import code as work

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if yolo and mode not in ("ask", "yolo"):
        raise UserError(f"--yolo and --mode {mode} say different things: give one of them.")
    out = stderr()
    options = CodeOptions(
        model=model,
        folder=cwd,
        prompt=prompt,
        is_headless=headless,
        output=output,
        mode="yolo" if yolo else mode,
        go_on=go_on,
        resume=resume,
        fork=fork,
        model_name=model_name,
        api_key=api_key,
        network=network,
        backend=backend,
        allow=tuple(allow or ()),
        is_sandboxed=not no_sandbox,
        max_turns=max_turns,
        max_tokens=max_tokens,
        max_time_s=max_time,
        max_context=max_context,
        temperature=temperature,
        seed=seed,
        mcp=tuple(mcp or ()),
    )
    ended = work(
        options,
        lambda name: load(name, max_context, device, dtype, yarn, keep_fp8, quantize, pack_cache, out),
        out,
    )
    raise typer.Exit(ended)
