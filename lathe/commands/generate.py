"""`lathe generate`: continue a text."""

from __future__ import annotations

import sys
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


def generate(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="Ask it as a user's turn instead.")] = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. May be repeated.")] = None,
    max_context: MaxContext = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    yarn: Yarn = None,
    keep_fp8: KeepFp8 = False,
    quantize: Quantized = "auto",
    pack_cache: PackCache = None,
) -> None:
    """Continue a raw text, or answer it with --chat. The continuation alone goes to standard output."""
    from lathe.terminal import talk
    from lathe.types import Message

    out = stderr()
    text = sys.stdin.read() if prompt == "-" else prompt
    with load(model, max_context, device, dtype, yarn, keep_fp8, quantize, pack_cache, out) as llm:
        sampling = changed(
            llm,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=tuple(stop) if stop else None,
        )
        if chat:
            chunks = llm.stream_chat([Message("user", text)], sampling=sampling)
        else:
            chunks = llm.stream_generate(text, sampling=sampling)
        talk.show(chunks, sys.stdout, out)
