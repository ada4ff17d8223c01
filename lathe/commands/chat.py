"""`lathe chat`: talk with a model in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lathe.commands.opening import changed, load, stderr
from lathe.commands.options import (
    Device,
    Dtype,
    KeepFp8,
    MaxContext,
    MaxTokens,
    ModelName,
    PackCache,
    Quantized,
    Seed,
    Temperature,
    TopK,
    TopP,
    Yarn,
)


def chat(
    model: ModelName = "smollm2",
    system: Annotated[str | None, typer.Option(help="Instructions before the first turn.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    max_context: MaxContext = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    yarn: Yarn = None,
    keep_fp8: KeepFp8 = False,
    quantize: Quantized = "auto",
    pack_cache: PackCache = None,
) -> None:
    """Talk with a model in the terminal. Piped input is read as one turn a line."""
    from lathe.terminal import talk

    out = stderr()
    with load(model, max_context, device, dtype, yarn, keep_fp8, quantize, pack_cache, out) as llm:
        sampling = changed(
            llm, max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
        )
        if sys.stdin.isatty():
            out.print("[dim]/help lists what else you can type.[/dim]", highlight=False)
            turns = talk.typed_turns(Path(typer.get_app_dir("lathe")) / "chat_history")
        else:
            turns = talk.piped_turns(sys.stdin)
        talk.converse(llm, turns, sampling, out, system=system)
