"""What verbs begin with: a model that is loaded, and a console to say so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lathe.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from lathe.engine.llm import LLM


def load(
    model: str,
    max_context: int | None,
    device: str,
    dtype: str,
    yarn: float | None,
    keep_fp8: bool,
    quantize: str,
    pack_cache: Path | None,
    out: Console,
    **engine_options: Any,
) -> LLM:
    """The model, with a bar while it loads, a line about the context that its cache gives, and one about what
    rounding its weights cost.

    `engine_options` are fields of EngineConfig."""
    dtypes = ("auto", "float32", "bfloat16", "float16")
    if dtype not in dtypes:
        raise UserError(f"{dtype} is no dtype: choose one of {', '.join(dtypes)}.")
    ways = ("auto", "keep", "none", "q4", "q8")
    if quantize not in ways:
        raise UserError(f"{quantize} is no way to quantize: choose one of {', '.join(ways)}.")

    from lathe.terminal.start import no_collections

    with no_collections():
        import torch

        from lathe.engine.engine import EngineConfig
        from lathe.engine.llm import LLM
        from lathe.terminal.progress import progress

        with progress(f"Loading {model}", out) as report:
            llm = LLM(
                model,
                device=device,
                dtype=None if dtype == "auto" else getattr(torch, dtype),
                yarn=yarn,
                keep_fp8=keep_fp8,
                quantize=None if quantize == "none" else cast(Any, quantize),
                pack_cache=pack_cache,
                engine_config=EngineConfig(max_context=max_context, **engine_options),
                progress=report,
            )
    out.print(f"{llm.model_id}: {llm.engine.describe()}", highlight=False, soft_wrap=True)
    if llm.loss is not None and llm.loss.relative_error:
        out.print(f"Weights were rounded: {llm.loss}.", highlight=False, soft_wrap=True)
    return llm


def load_upstream(name: str, url: str, out: Console, **options: Any) -> LLM:
    """The model that another engine runs, with a line about what was found there. `options` are those of
    `open_upstream`."""
    from lathe.engine.upstream import open_upstream

    llm = open_upstream(name, url, **options)
    out.print(f"{llm.model_id}: {llm.engine.describe()}", highlight=False, soft_wrap=True)
    return llm


def changed(llm: LLM, **options: Any) -> Any:
    """The model's own sampling, but for the options that were given."""
    from dataclasses import replace

    return replace(
        llm.default_sampling, **{name: value for name, value in options.items() if value is not None}
    )


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def stdout() -> Console:
    from rich.console import Console

    return Console()
