"""`lathe serve`: a model behind an endpoint."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from lathe.commands.opening import load, load_upstream, stderr
from lathe.commands.options import Device, Dtype, KeepFp8, MaxContext, ModelName, PackCache, Quantized, Yarn
from lathe.errors import UserError


def serve(
    model: ModelName = "smollm2",
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0: all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on. 0: any free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LATHE_API_KEY", help="Ask every client for this key.")
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name that the model goes by. May be repeated.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write every conversation into this folder, as Rollouts."),
    ] = None,
    follow: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Serve the weights that a trainer publishes here, as they come."),
    ] = None,
    max_context: MaxContext = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    yarn: Yarn = None,
    keep_fp8: KeepFp8 = False,
    quantize: Quantized = "auto",
    pack_cache: PackCache = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="The same reply to the same seeded request, bit for bit, under any load. Slower.",
        ),
    ] = False,
    speculate: Annotated[
        bool, typer.Option(help="Guess repeated words ahead, where that pays. Changes no reply.")
    ] = True,
    grace: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds that replies in the making get when the server is stopped."),
    ] = 3.0,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Ask the engine there; of MODEL, only the tokenizer and template are used."
        ),
    ] = None,
    upstream_key: Annotated[
        str | None, typer.Option(envvar="LATHE_UPSTREAM_KEY", help="The upstream's key.")
    ] = None,
    upstream_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the upstream calls MODEL. As it says itself.")
    ] = None,
) -> None:
    """Serve a model behind an OpenAI-compatible endpoint."""
    import logging

    from lathe.server import run

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("lathe").setLevel(logging.INFO)
    out = stderr()
    # Before the model loads: a port in use is better known now than in some minutes.
    bound = run.bind(host, port)
    from lathe.engine.follow import Follower
    from lathe.server.app import create_app
    from lathe.server.recorder import open_folder

    if record is not None:
        open_folder(record)
    engine_options: dict[str, Any] = {"deterministic": deterministic} | (
        {} if speculate else {"max_drafts": 0}
    )
    if upstream is None:
        opened = load(
            model, max_context, device, dtype, yarn, keep_fp8, quantize, pack_cache, out, **engine_options
        )
    else:
        settings = (device, dtype, yarn, keep_fp8, quantize, pack_cache, deterministic, speculate, follow)
        if settings != ("auto", "auto", None, False, "auto", None, False, True, None):
            raise UserError(
                "--device, --dtype, --yarn, --keep-fp8, --quantize, --pack-cache, --deterministic, "
                "--no-speculate and --follow are an engine's settings: give them to the upstream."
            )
        opened = load_upstream(
            model,
            upstream,
            out,
            api_key=upstream_key,
            model=upstream_model,
            max_context=max_context,
            exact=record is not None,
        )
    with opened as llm:
        url = run.base_url(bound)
        if not run.is_loopback(bound) and api_key is None:
            out.print("[yellow]Anyone who reaches this machine may use the model: set --api-key.[/yellow]")

        if record is not None:
            out.print(f"Every conversation is recorded in {record}.", highlight=False, soft_wrap=True)

        def show_how_to_ask() -> None:
            line = f"Serving at {url}/v1, and a chat page at {url} (Ctrl-C stops). Try:"
            out.print(line, highlight=False, soft_wrap=True)
            typer.echo(run.curl_line(url, api_key))

        app = create_app(llm, api_key=api_key, aliases=alias or (), record=record)
        engine: Any = llm.engine
        with contextlib.closing(Follower(engine, follow)) if follow else contextlib.nullcontext():
            run.run(app, bound, show_how_to_ask, grace)
