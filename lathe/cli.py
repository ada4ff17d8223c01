"""The command line: one function a verb, each thin. What is heavy is imported when a verb needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

import lathe
from lathe.commands.report import report
from lathe.commands.show import show
from lathe.errors import LatheError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from lathe.engine.llm import LLM


class Verbs(TyperGroup):
    """Shows what a user did wrong as one line. --debug shows where it was noticed."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except LatheError as error:
            if ctx.params["debug"]:
                raise
            stderr().print(f"[bold red]Error:[/bold red] [red]{escape(str(error))}[/red]", soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

CODE_EXITS = (
    "Exit codes of -p: 0 done, 1 a mistake in how it was called, 53 out of turns, 54 out of tokens, 55 out "
    "of time, 56 it went in circles, 57 the model can't be reached or failed, 58 the sandbox failed, 59 the "
    "window is full, 60 replies were cut again and again, 130 interrupted."
)

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


@app.callback(invoke_without_command=True)
def main_options(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
) -> None:
    """Run, serve and convert open coding models."""
    if version:
        print(f"lathe {lathe.__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command()
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
        settings = (device, dtype, yarn, keep_fp8, quantize, pack_cache, deterministic, speculate)
        if settings != ("auto", "auto", None, False, "auto", None, False, True):
            raise UserError(
                "--device, --dtype, --yarn, --keep-fp8, --quantize, --pack-cache, --deterministic and "
                "--no-speculate are an engine's settings: give them to the upstream."
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
            print(run.curl_line(url, api_key), flush=True)

        app = create_app(llm, api_key=api_key, aliases=alias or (), record=record)
        run.run(app, bound, show_how_to_ask, grace)


@app.command()
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


@app.command(epilog=CODE_EXITS)
def code(
    prompt: Annotated[
        str | None, typer.Argument(help="The first turn; with -p the only one. -: stdin.")
    ] = None,
    headless: Annotated[
        bool, typer.Option("-p", "--print", help="No terminal: do one turn, print the answer, leave.")
    ] = False,
    model: Annotated[
        str,
        typer.Option("-m", "--model", metavar="NAME_OR_URL", help="smollm2, …, or http://localhost:8000/v1"),
    ] = "smollm2",
    model_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the models at that URL. The first it lists.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LATHE_API_KEY", help="The server's key.")] = None,
    mode: Annotated[
        str, typer.Option(help="What is asked for before it is done: plan, ask, auto-edit or yolo.")
    ] = "ask",
    yolo: Annotated[
        bool, typer.Option("--yolo", help="--mode yolo: ask nothing. The sandbox stays.")
    ] = False,
    cwd: Annotated[Path, typer.Option(metavar="DIR", help="The project's folder.")] = Path(),
    go_on: Annotated[
        bool, typer.Option("-c", "--continue", help="Go on with this project's last session.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option("-r", "--resume", metavar="ID", help="Go on with this one.")
    ] = None,
    fork: Annotated[bool, typer.Option("--fork", help="With -c or -r: go on with a copy of it.")] = False,
    output: Annotated[str, typer.Option("-o", "--output", help="Of -p: text, json or stream-json.")] = "text",
    max_turns: Annotated[
        int | None, typer.Option(min=1, help="Most replies of the model for one turn.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens that it may say for one turn.")
    ] = None,
    max_time: Annotated[float | None, typer.Option(min=0.1, help="Most seconds for one turn.")] = None,
    network: Annotated[
        str, typer.Option(help="What commands reach: none, loopback, or egress:HOST,… as in egress:pypi.org")
    ] = "none",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="Another folder that commands may write; PATH:ro only read. Repeatable."
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="The sandbox: auto, namespace, landlock or docker.")] = "auto",
    no_sandbox: Annotated[
        bool, typer.Option("--no-sandbox", help="Run commands as you, unguarded. Know what you do.")
    ] = False,
    mcp: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="MCP servers to start, not in the sandbox. May be repeated."),
    ] = None,
    temperature: Temperature = None,
    seed: Seed = None,
    max_context: MaxContext = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    yarn: Yarn = None,
    keep_fp8: KeepFp8 = False,
    quantize: Quantized = "auto",
    pack_cache: PackCache = None,
) -> None:
    """Let a model work on a project: a session in the terminal, or one turn with -p."""
    import logging

    from lathe.terminal.code import CodeOptions
    from lathe.terminal.code import code as work

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if yolo and mode not in ("ask", "yolo"):
        raise UserError(f"--yolo and --mode {mode} say different things: give one of them.")
    out = stderr()
    options = CodeOptions(
        model=model,
        folder=cwd,
        prompt=prompt,
        is_headless=headless,
        output=output,
        mode="yolo" if yolo else mode,
        go_on=go_on,
        resume=resume,
        fork=fork,
        model_name=model_name,
        api_key=api_key,
        network=network,
        backend=backend,
        allow=tuple(allow or ()),
        is_sandboxed=not no_sandbox,
        max_turns=max_turns,
        max_tokens=max_tokens,
        max_time_s=max_time,
        max_context=max_context,
        temperature=temperature,
        seed=seed,
        mcp=tuple(mcp or ()),
    )
    ended = work(
        options,
        lambda name: load(name, max_context, device, dtype, yarn, keep_fp8, quantize, pack_cache, out),
        out,
    )
    raise typer.Exit(ended)


@app.command()
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


@app.command()
def complete(
    place: Annotated[
        str, typer.Argument(metavar="FILE:LINE:COL", help="The cursor: before that character, from 1.")
    ],
    model: Annotated[
        str | None, typer.Option(help="One that fills in the middle, such as qwen3-coder-30b.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask a running server instead of loading a model.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LATHE_API_KEY", help="The server's key.")] = None,
    context: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Show this file, too. May be repeated; the last matters most."),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Read no other file. Else: nearby ones of the git repository.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 128,
    max_context: MaxContext = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    yarn: Yarn = None,
    keep_fp8: KeepFp8 = False,
    quantize: Quantized = "auto",
    pack_cache: PackCache = None,
) -> None:
    """Fill in what belongs at a cursor. The text alone goes to standard output."""
    from lathe.terminal.complete import ask_server, fill_in, parse_place, prompt_at
    from lathe.terminal.talk import CONTROLS

    if (model is None) == (server is None):
        raise UserError("Say who fills it in: --model NAME loads one, --server URL asks a running server.")
    prompt = prompt_at(parse_place(place), [] if alone else context or None)

    def write(text: str) -> None:
        sys.stdout.write(text.translate(CONTROLS) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    if server is not None:
        write(ask_server(server, prompt, max_tokens, api_key))
    else:
        with load(
            str(model), max_context, device, dtype, yarn, keep_fp8, quantize, pack_cache, stderr()
        ) as llm:
            for text in fill_in(llm, prompt, max_tokens):
                write(text)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Write it as JSON.")] = False,
) -> None:
    """Say what this machine can do, and why not: sandboxes, Python, torch, GPU. Exits 1 without sandboxes."""
    from lathe.terminal import doctor

    found = doctor.examine()
    doctor.show(found, stdout()) if not as_json else print(found.to_json())
    if found.sandboxes.auto is None:
        raise typer.Exit(1)


kernels = typer.Typer(invoke_without_command=True)
app.add_typer(kernels, name="kernels")


@kernels.callback()
def kernels_in_use(ctx: typer.Context) -> None:
    """Say which compiled CPU kernels are in use; `build` compiles them. Exits 1 where there are none."""
    from lathe.kernels.cpu import library

    if ctx.invoked_subcommand is None:
        print(library.describe())
        if library.load() is None:
            raise typer.Exit(1)


@kernels.command("build")
def build_kernels(
    force: Annotated[bool, typer.Option("--force", help="Compile them even where nothing changed.")] = False,
) -> None:
    """Compile the CPU kernels, as for a compiler that was installed after Lathe. CXX chooses the compiler."""
    from lathe.kernels.cpu import build, library

    try:
        with stderr().status("Compiling …"):
            build.build(force=force)
    except build.BuildFailed as error:
        raise UserError(f"No CPU kernels were compiled: {error}") from error
    print(library.describe())


app.command()(show)
app.command()(report)


@app.command("fleet")
def show_fleet(
    address: Annotated[str, typer.Argument(help="The Ray cluster: HOST:PORT, or auto.")] = "auto",
) -> None:
    """Show the machines of a Ray cluster that can hold sandboxes, for `lathe attempt --fleet`."""
    import asyncio

    from lathe.sandbox.fleet.fleet import open_fleet
    from lathe.terminal.fleet import fleet_table

    async def look() -> None:
        with stderr().status("Opening a pool on each machine …"):
            async with open_fleet(address) as opened:
                table = fleet_table(opened.nodes)
        stdout().print(table)

    asyncio.run(look())


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


def escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def main() -> None:
    """The console script."""
    if sys.argv[1:2] in (["chat"], ["generate"], ["serve"]):
        from lathe.terminal.start import preload_torch

        preload_torch()
    app(prog_name="lathe")


if __name__ == "__main__":
    main()
