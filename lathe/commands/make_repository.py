"""`lathe make repository`: tasks out of a repository whose tests pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lathe.commands.make import Backend, Concurrency, Limit, Out, Where, open_model, run_in_pool
from lathe.errors import UserError


def repository(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder, or a git repository's.")],
    out: Out,
    kinds: Annotated[
        str, typer.Option(help="Which faults. rewrite needs --model.")
    ] = "slip,slips,body,pair,commit,rewrite",
    where: Where = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same tasks.")] = 0,
    concurrency: Concurrency = 2,
    runs: Annotated[int, typer.Option(min=1, help="How often the suite is run before.")] = 5,
    gold: Annotated[int, typer.Option(min=1, help="How often each repair is judged.")] = 2,
    suite_time: Annotated[float, typer.Option(min=1.0, help="Most seconds for the suite.")] = 600.0,
    min_mutation: Annotated[
        float, typer.Option(help="Least share of other slips in the function that the tests reject.")
    ] = 0.5,
    show_failing: Annotated[
        bool, typer.Option("--show-failing", help="Leave the failing tests where the agent sees them.")
    ] = False,
    inline: Annotated[
        bool, typer.Option("--inline", help="Put the repository into each task, which then needs no image.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_URL", help="Rewrites functions, words issues; its pass rate is the difficulty."
        ),
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="Which of a server's models. Its first.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LATHE_API_KEY", help="The server's key.")] = None,
    attempts: Annotated[int, typer.Option(min=0, help="The model's attempts at each task.")] = 4,
    backend: Backend = "auto",
) -> None:
    """Make tasks from a repository: a fault is put in, some of its tests fail, all others pass.

    Nothing of it runs outside of a sandbox. FILE.drops says what became of each fault.
    """
    import tempfile

    from lathe.sandbox.images import ImageStore
    from lathe.synth.gates import Thresholds
    from lathe.synth.repositories import make_tasks
    from lathe.synth.repository.bugs import KINDS
    from lathe.synth.repository.checkout import check_out
    from lathe.synth.repository.workshop import RepositoryConfig

    chosen = tuple(each.strip() for each in kinds.split(",") if each.strip())
    if unknown := [each for each in chosen if each not in KINDS]:
        raise UserError(f"{unknown[0]} is no kind of fault: there are {', '.join(KINDS)}.")
    config = RepositoryConfig(
        kinds=chosen,
        seed=seed,
        num_runs=runs,
        suite_time_s=suite_time,
        num_candidates=limit,
        num_gold=gold,
        num_attempts=attempts if model else 0,
        thresholds=Thresholds(min_tests=2, min_mutation=min_mutation),
        shows_failing=show_failing,
        inline=inline,
    )
    images = ImageStore()  # the person's own: tasks name an image of it
    with tempfile.TemporaryDirectory(prefix="lathe-repository-") as folder:
        found = check_out(path, Path(folder), images)
        settings = {
            "maker": "repository", "repository": found.digest, "where": where, "config": repr(config),
            "model": model,
        }  # fmt: skip

        async def run(stack: Any, pool: Any, book: Any, query: Any, tell: Any) -> Any:
            asked = await open_model(stack, model, served_name, api_key)
            return await make_tasks(
                found, book, pool, config, asked, concurrency=concurrency, where=query, on_done=tell
            )

        run_in_pool(run, out, settings, where, backend, images)
