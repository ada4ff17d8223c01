"""`lathe make`: tasks out of functions and repositories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lathe.errors import UserError

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

make = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Out = Annotated[
    Path, typer.Option(metavar="FILE", help="Where tasks go, one a line. A killed run goes on there.")
]
Concurrency = Annotated[int, typer.Option(min=1, help="Candidates at a time.")]
Where = Annotated[
    str | None, typer.Option(metavar="QUERY", help="Keep such tasks: 'mutation >= 0.8 and difficulty < 0.5'.")
]
Backend = Annotated[str, typer.Option(help="What sandboxes are made of: auto, namespace …")]
Limit = Annotated[int | None, typer.Option(min=1, help="Look at so many candidates, chosen by the seed.")]


@make.callback()
def about() -> None:
    """Make tasks with hidden tests, and measure the tests."""


@make.command()
def functions(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files, folders, installed packages, modules, or stdlib."),
    ],
    out: Out,
    kinds: Annotated[str, typer.Option(help="Which kinds of tasks.")] = "write,fix,complete,predict",
    language: Annotated[str, typer.Option(help="python, javascript or perl.")] = "python",
    where: Where = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same tasks.")] = 0,
    concurrency: Concurrency = 2,
    min_tests: Annotated[int, typer.Option(min=1, help="Fewest tests of a task.")] = 5,
    min_mutation: Annotated[float, typer.Option(help="Least share of mutants that the tests reject.")] = 0.6,
    min_tnr: Annotated[float, typer.Option(help="Least share of held-out wrong solutions rejected.")] = 0.8,
    gold: Annotated[int, typer.Option(min=1, help="How often the reference is judged.")] = 3,
    benchmark: Annotated[
        list[Path] | None,
        typer.Option(metavar="JSONL", help="Keep clear of these tasks' texts, too. May be repeated."),
    ] = None,
    humaneval: Annotated[bool, typer.Option(help="Keep clear of HumanEval (extra evals).")] = True,
    licence: Annotated[
        str | None, typer.Option(help="The licence of files and folders that don't say theirs.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_URL",
            help="Describes what has no docstring, proposes inputs; its pass rate is the difficulty.",
        ),
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="Which of a server's models. Its first.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LATHE_API_KEY", help="The server's key.")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="The model's attempts at each task.")] = 4,
    backend: Backend = "auto",
) -> None:
    """Make tasks from functions: write it, fix it, complete it, predict its output.

    Nothing of the sources runs outside of a sandbox. FILE.drops says what became of each candidate.
    """
    from lathe.synth.foreign import ForeignMaker
    from lathe.synth.functions import FunctionMaker, FunctionsConfig
    from lathe.synth.gates import Thresholds
    from lathe.synth.kinds import KINDS
    from lathe.synth.languages import LANGUAGES
    from lathe.synth.source import read_functions

    chosen = tuple(each.strip() for each in kinds.split(",") if each.strip())
    if unknown := [each for each in chosen if each not in KINDS]:
        raise UserError(f"{unknown[0]} is no kind of task: there are {', '.join(KINDS)}.")
    asked = Thresholds(min_tests=min_tests, min_mutation=min_mutation, min_tnr=min_tnr)
    picked: Any = chosen
    config = FunctionsConfig(picked, seed, num_gold=gold, num_attempts=attempts, asked=asked)
    if language not in ("python", *LANGUAGES):
        raise UserError(f"{language} is no language that tasks are made of: python, {', '.join(LANGUAGES)}.")
    corpus = read_functions(
        sources,
        language=language,
        licence=licence,
        seed=seed,
        limit=limit,
        benchmarks=benchmark or (),
        humaneval=humaneval,
    )
    settings = {
        "maker": "functions",
        "sources": sorted(sources),
        "language": language,
        "candidates": len(corpus.candidates),
        "where": where,
        "config": repr(config),
        "benchmarks": [str(each) for each in benchmark or ()],
        "humaneval": humaneval,
        "model": model,
    }

    async def begin(stack: AsyncExitStack, pool: Any) -> Any:
        if language != "python":
            return ForeignMaker(pool, config, corpus.benchmarks).make
        asked_model = await open_model(stack, model, served_name, api_key)
        return FunctionMaker(
            pool, corpus.scopes, corpus.observed, config, corpus.benchmarks, asked_model
        ).make

    run_maker(corpus.candidates, begin, out, settings, where, concurrency, backend)


async def open_model(
    stack: AsyncExitStack, name: str | None, served_name: str | None, key: str | None
) -> Any:
    """The model that makers ask: in this process, or behind a URL; None for none."""
    if name is None:
        return None
    if name.startswith(("http://", "https://")):
        from lathe.client import ChatClient

        client: Any = await stack.enter_async_context(ChatClient(name, served_name, key))
        await client.find()
        return client
    from lathe.commands.opening import load, stderr

    opened = load(name, None, "auto", "auto", None, False, "auto", None, stderr())
    return stack.enter_context(opened)


def run_maker(
    candidates: Any,
    begin: Any,
    out: Path,
    settings: dict[str, Any],
    where: str | None,
    concurrency: int,
    backend: str,
) -> None:
    """Run a maker over its candidates, with a bar and a table at the end. `begin(stack, pool)` gives the
    function that makes a candidate's tasks; what it opens on the stack is closed in the end."""
    from lathe.synth.making import make_all

    async def run(stack: AsyncExitStack, pool: Any, book: Any, query: Any, tell: Any) -> Any:
        make_one = await begin(stack, pool)
        return await make_all(candidates, make_one, book, concurrency=concurrency, where=query, on_done=tell)

    run_in_pool(run, out, settings, where, backend)


def run_in_pool(
    run: Any, out: Path, settings: dict[str, Any], where: str | None, backend: str, images: Any = None
) -> None:
    """`run(stack, pool, book, query, tell)` makes tasks, tells how far it is, and gives a summary."""
    import asyncio
    from contextlib import AsyncExitStack
    from typing import get_args

    from rich.console import Console

    from lathe.sandbox.pool import BackendName, open_pool
    from lathe.synth.book import open_book
    from lathe.synth.where import parse_query
    from lathe.terminal.make import show_summary, watch

    if backend not in get_args(BackendName):
        raise UserError(f"{backend} is no backend: choose one of {', '.join(get_args(BackendName))}.")
    query = None if where is None else parse_query(where)
    errors = Console(stderr=True)
    kind: Any = backend

    async def work() -> None:
        async with AsyncExitStack() as stack:
            book = stack.enter_context(open_book(out, settings))
            pool = await stack.enter_async_context(open_pool(kind, images=images))
            tell = stack.enter_context(watch(errors))
            summary = await run(stack, pool, book, query, tell)
        show_summary(summary, Console())

    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        errors.print(f"Stopped. The same command goes on where it was; see {out}.", soft_wrap=True)
        raise typer.Exit(130) from None
