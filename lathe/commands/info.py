"""`lathe info`: a model's shape, files and memory."""

from __future__ import annotations

from typing import Annotated

import typer

from lathe.commands.opening import stdout
from lathe.commands.options import ModelName, Yarn


def info(
    model: ModelName,
    context: Annotated[
        list[int] | None, typer.Option(min=1, help="A length to size the KV cache for. May be repeated.")
    ] = None,
    yarn: Yarn = None,
) -> None:
    """Show a model's shape, files, sampling and memory. Loads no weights; presets need none at all."""
    from lathe.terminal import info

    found = info.find(model)
    config = found.config if yarn is None else found.config.with_yarn(yarn)
    out = stdout()
    info.show_shape(config, out)
    if found.checkpoint is not None:
        info.show_files(found.checkpoint, out)
        info.show_text(found.checkpoint, out)
    info.show_quantized(found, out)
    info.show_memory(config, context or info.contexts_of(config), out)
