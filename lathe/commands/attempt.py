"""`lathe attempt`: tasks, attempted and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lathe.commands.opening import changed, load, load_upstream, stderr, stdout
from lathe.commands.options import (
    Device,
    Dtype,
    KeepFp8,
    MaxContext,
    MaxTokens,
    PackCache,
    Quantized,
    Seed,
    Temperature,
    TopK,
    TopP,
    Yarn,
)
from lathe.errors import UserError


def attempt(
    tasks: Annotated[Path, typer.Argument(metavar="TASKS", help="A .jsonl of tasks, or a folder of them.")],
    model: Annotated[
        str,
        typer.Option(metavar="NAME_OR_URL", help="A model to load, or a server that speaks OpenAI's API."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where rollouts go, one a line. A killed run goes on there.")
    ],
    concurrency: Annotated[int, typer.Option(min=1, help="Attempts at a time.")] = 8,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts at each task.")] = 1,
    served_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of a server's models. Its first.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LATHE_API_KEY", help="The server's key.")] = None,
    upstream: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask the engine there; of MODEL, only the tokenizer is used."),
    ] = None,
    one_turn: Annotated[
        bool, typer.Option("--one-turn", help="Ask once, without tools: the answer's code is the solution.")
    ] = False,
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="Another agent, such as 'qwen -p {prompt} --approval-mode yolo'."
        ),
    ] = None,
    agent_folder: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A folder that the agent's programs need. May be repeated."),
    ] = None,
    retry_invalid: Annotated[
        bool,
        typer.Option("--retry-invalid", help="Make attempts anew that the machine or the server failed."),
    ] = False,
    max_turns: Annotated[int | None, typer.Option(min=1, help="Most replies in one attempt.")] = 100,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Most tokens that one attempt may sample.")
    ] = None,
    max_time: Annotated[float, typer.Option(min=1.0, help="Most seconds for one attempt.")] = 1800.0,
    system: Annotated[str | None, typer.Option(help="A system prompt in place of Lathe's own.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    backend: Annotated[str, typer.Option(help="What sandboxes are made of: auto, namespace …")] = "auto",
    state: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The pool's folder, where the tasks' images are.")
    ] = None,
    fleet: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Have the sandboxes on a Ray cluster's machines.")
    ] = None,
    max_context: MaxContext = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    yarn: Yarn = None,
    keep_fp8: KeepFp8 = False,
    quantize: Quantized = "auto",
    pack_cache: PackCache = None,
) -> None:
    """Attempt tasks in sandboxes; judge each attempt in a clean one. A killed run goes on where it was."""
    import asyncio
    from contextlib import AsyncExitStack
    from typing import get_args

    from lathe.agent.attempt import AgentConfig
    from lathe.agent.events import TurnEnded
    from lathe.agent.tools import NATIVE_TOOLS
    from lathe.rollout.attempt import RolloutConfig
    from lathe.rollout.code_block import answer_file
    from lathe.rollout.command import ForeignSetup, run_plan
    from lathe.rollout.harness import ForeignAgent
    from lathe.rollout.many import Plan
    from lathe.sandbox.pool import BackendName
    from lathe.sandbox.spec import Bind
    from lathe.tasks.store import read_tasks
    from lathe.terminal.attempt import Tally, show_summary, watch

    is_url = model.startswith(("http://", "https://"))
    if one_turn and agent is not None:
        raise UserError(
            "--one-turn and --agent exclude each other: an agent takes as many turns as it likes."
        )
    if is_url and (agent is not None or upstream is not None):
        raise UserError(
            "A server's tokens are recorded only with the tokenizer at hand: say --model NAME --upstream URL."
        )
    if backend not in get_args(BackendName):
        raise UserError(f"{backend} is no backend: choose one of {', '.join(get_args(BackendName))}.")
    if fleet is not None and agent is not None:
        raise UserError("--fleet and --agent exclude each other: another agent must reach the server here.")
    known = list(read_tasks(tasks))
    if not known:
        raise UserError(f"{tasks} holds no task.")
    if one_turn:
        for task in known:
            answer_file(task)
    foreign = None
    if agent is not None:
        from lathe.server.app import create_app

        binds = tuple(Bind(str(path.resolve()), str(path.resolve())) for path in agent_folder or ())
        parsed = ForeignAgent.parse(agent, binds, max_time)
        foreign = ForeignSetup(parsed, lambda records: create_app(llm, record=records))
    given: dict[str, Any] = dict(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    given = {name: value for name, value in given.items() if value is not None}
    out_console = stderr()
    kind: Any = backend  # the pool says which there are
    llm: Any = None

    async def work() -> None:
        nonlocal llm
        async with AsyncExitStack() as stack:
            if is_url:
                from lathe.client import ChatClient
                from lathe.types import SamplingParams

                asked: Any = await stack.enter_async_context(ChatClient(model, served_name, api_key))
                await asked.find()
                sampling = SamplingParams(**given) if given else None
            else:
                opened = (
                    load(model, max_context, device, dtype, yarn, keep_fp8, quantize, pack_cache, out_console)
                    if upstream is None
                    else load_upstream(
                        model, upstream, out_console, api_key=api_key, model=served_name,
                        max_context=max_context, exact=True,
                    )
                )  # fmt: skip
                llm = asked = stack.enter_context(opened)
                sampling = changed(llm, **given)
            limits = AgentConfig(
                system=system, sampling=sampling, max_turns=max_turns, max_tokens=budget, max_time_s=max_time
            )
            config = RolloutConfig(limits, () if one_turn else NATIVE_TOOLS)
            plan = Plan(known, config, attempts, concurrency, retry_invalid=retry_invalid)
            tally = Tally(total=len(known) * attempts)
            show = stack.enter_context(watch(tally, out_console))

            def count(score: Any) -> None:
                tally.num_solved, tally.num_failed = score.num_solved, score.num_failed
                tally.num_invalid = score.num_invalid
                show()

            def begin(score: Any) -> None:
                count(score)
                tally.num_before = tally.num_done

            def done(rollout: Any, score: Any) -> None:
                if foreign is not None:
                    tally.num_tokens += rollout.info["tokens"]["reply"]
                count(score)

            def hear(event: Any) -> None:
                if isinstance(event, TurnEnded):
                    tally.num_tokens += event.completion.num_reply_tokens
                    show()

            score = await run_plan(
                plan, asked, out, backend=kind, state=state, fleet=fleet, foreign=foreign, on_begin=begin,
                on_done=done, on_event=hear,
            )  # fmt: skip
        passes = {k: score.pass_at(k) for k in sorted({1, attempts})}
        show_summary(tally, passes, score.reasons, score.num_suspect, stdout())

    try:
        asyncio.run(work())
    except KeyboardInterrupt:
        out_console.print(f"Stopped. The same command goes on where it was; see {out}.", soft_wrap=True)
        raise typer.Exit(130) from None
