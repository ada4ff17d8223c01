"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="smollm2, a folder, a .gguf file, or a Hugging Face id")
]
MaxContext = Annotated[
    int | None,
    typer.Option(min=1, help="Longest prompt and reply together, in tokens. As the model and memory allow."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16 or float16. auto: float32 on a CPU, else as stored.")
]
Yarn = Annotated[
    float | None, typer.Option(help="Stretch the context by this factor (Qwen3-Coder: 4, to 1M tokens).")
]
KeepFp8 = Annotated[
    bool, typer.Option("--keep-fp8", help="Leave FP8 weights at one byte each: less memory, slower on a CPU.")
]
Quantized = Annotated[
    str,
    typer.Option(
        "--quantize",
        help="Weights on a CPU: q4, q8, keep (as in the file) or none (in --dtype). auto: what is quickest.",
    ),
]
PackCache = Annotated[
    Path | None,
    typer.Option("--pack-cache", metavar="DIR", help="Keep quantized weights there for the next time."),
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest reply, in tokens.")]
Temperature = Annotated[float | None, typer.Option(min=0.0, help="0 takes the likeliest token each time.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens that hold this share.")]
TopK = Annotated[int | None, typer.Option(min=0, help="Draw from this many likeliest tokens. 0: all.")]
Seed = Annotated[int | None, typer.Option(help="The same seed draws the same reply.")]
