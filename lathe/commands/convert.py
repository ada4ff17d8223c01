"""`lathe convert`: one form of checkpoint into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lathe.commands.opening import stderr, stdout
from lathe.commands.options import ModelName
from lathe.errors import UserError


def convert(
    source: ModelName,
    target: Annotated[Path, typer.Argument(help="A name ending in .gguf, or a folder for safetensors.")],
    type: Annotated[
        str | None, typer.Option(help="A GGUF's q8_0 (default), f16, q4_k_m …, or fp8 for a folder.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    device: Annotated[str, typer.Option(help="Where to quantize: cpu, cuda …")] = "cpu",
) -> None:
    """Convert a checkpoint: safetensors to GGUF, GGUF to safetensors, either to block FP8."""
    from lathe.engine.loading import load_tokenizer
    from lathe.model.convert import convert
    from lathe.model.hub import resolve
    from lathe.terminal.info import show_conversion
    from lathe.terminal.progress import progress

    kind: Any = "gguf" if target.suffix == ".gguf" else "fp8" if type == "fp8" else "safetensors"
    if kind == "safetensors" and type is not None:
        raise UserError(
            f"A folder holds safetensors as the config says, or fp8; {type} needs a target ending in .gguf."
        )
    out = stderr()
    path = resolve(source)
    with progress(f"Converting to {target}", out) as report:
        summary = convert(
            path,
            target,
            kind=kind,
            type=type or "q8_0",
            tokenizer_metadata=lambda checkpoint, rows: load_tokenizer(checkpoint).gguf_metadata(rows),
            save_tokenizer=lambda checkpoint, folder: load_tokenizer(checkpoint).save(folder),
            overwrite=overwrite,
            device=device,
            progress=report,
        )
    show_conversion(summary, stdout())
