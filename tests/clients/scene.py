"""One scene: a real coding agent's process, the real server, and a model that says what the script says."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from agent import NODE_FOLDER, WINDOW, Agent, Line
from serving import serve_app

from lathe.server.app import create_app
from lathe.testing import ScriptedModel
from lathe.text.tokenizer import Tokenizer
from lathe.text.tool_calls import render

TITLE = "Two files"  # what every request outside the conversation gets: a title, a summary, a commit message


@dataclass
class Scene:
    """What happened: how the processes ended, what the server answered, and what the model was asked.

    `prompts` are the conversation's own, with their tokens, those of them that were cached, and those of
    the replies; `asides` are all other prompts.
    """

    exit_codes: list[int | None] = field(default_factory=list)  # None: it ran past the limit
    outputs: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    num_cached: list[int] = field(default_factory=list)
    num_said: list[int] = field(default_factory=list)
    asides: list[str] = field(default_factory=list)
    num_leftovers: int = 0

    def cached_shares(self) -> list[float]:
        """For each prompt but the first: how much is cached of what the model had read and said before."""
        before = [count + said for count, said in zip(self.num_tokens, self.num_said, strict=True)]
        return [min(cached / past, 1.0) for cached, past in zip(self.num_cached[1:], before, strict=False)]

    def __str__(self) -> str:
        ends = [f"exit codes {self.exit_codes}, processes left running: {self.num_leftovers}"]
        prompts = [f"prompt {n} ({c} cached)" for n, c in zip(self.num_tokens, self.num_cached, strict=True)]
        return "\n".join([*ends, *self.answers, *prompts, *self.outputs])


def play(
    agent: Agent,
    folder: Path,
    home: Path,
    tokenizer: Tokenizer,
    *,
    record: Path | None = None,
    unseen: str = "",
    timeout_s: float = 180,
) -> Scene:
    """Runs the agent's commands in `folder`, with `home` as its home. The server may record in `record`.
    `unseen` is a control token that each reply begins with, and that no client gets to see.

    The model says the first line whose words the conversation does not hold yet: a client that sends a
    request again gets the same reply again, and requests on the side disturb nothing.
    """
    scene = Scene()
    lines = agent.lines(folder)

    def answer(prompt: str) -> str:
        if agent.mark not in prompt:
            return TITLE
        left = (spoken(line) for line in lines if line.words not in prompt)
        reply = unseen + next(left, "There is nothing left to do.")
        scene.num_said.append(len(tokenizer.encode(reply, allow_special=True)) + 1)
        return reply

    model = ScriptedModel(answer=answer, prefix_cache=True, tokenizer=tokenizer, max_context=WINDOW)
    app = create_app(model, record=record)
    app.add_middleware(WriteDown, answers=scene.answers)
    try:
        with serve_app(app) as url:
            url = url.replace("localhost", "127.0.0.1")  # some clients try ::1 first
            for path, text in agent.settings(url).items():
                (home / path).parent.mkdir(parents=True, exist_ok=True)
                (home / path).write_text(text, encoding="utf-8")
            for name, *arguments in agent.commands(url):
                command = [str(agent.executable) if name == agent.program else name, *arguments]
                run(scene, command, folder, bare_environment(home) | agent.environment(url), timeout_s)
    finally:
        model.close()
    for ids, num_cached in zip(model.engine.prompts, model.engine.num_cached_tokens, strict=True):
        prompt = tokenizer.decode(ids)
        if agent.mark in prompt:
            scene.prompts.append(prompt)
            scene.num_tokens.append(len(ids))
            scene.num_cached.append(num_cached)
        else:
            scene.asides.append(prompt)
    return scene


def spoken(line: Line) -> str:
    rest = render(line.calls) if line.calls else line.edits
    return f"{line.words}\n\n{rest}" if rest else line.words


class WriteDown:
    """Notes how each request was answered."""

    def __init__(self, app, answers: list[str]):
        self.app = app
        self.answers = answers

    async def __call__(self, scope, receive, send):
        async def note(message):
            if message["type"] == "http.response.start":
                self.answers.append(f"{message['status']} {scope['method']} {scope['path']}")
            await send(message)

        await self.app(scope, receive, note if scope["type"] == "http" else send)


def run(
    scene: Scene, command: list[str], folder: Path, environment: Mapping[str, str], timeout_s: float
) -> None:
    """Runs one process to its end, or to the limit's, and ends what it leaves running."""
    home = Path(environment["HOME"])
    log = home / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,  # a file: a daemon that keeps a pipe open would keep us waiting
            stderr=subprocess.STDOUT,
        )
        try:
            scene.exit_codes.append(process.wait(timeout_s))
        except subprocess.TimeoutExpired:
            scene.exit_codes.append(None)
        finally:
            scene.num_leftovers += end_processes_of(home)
            process.wait(10)
    scene.outputs.append(log.read_text(encoding="utf-8", errors="replace"))


def bare_environment(home: Path) -> dict[str, str]:
    """Enough to run, in a home of its own: no keys of this machine, and the only way out is a proxy that
    does not answer."""
    (home / "tmp").mkdir(exist_ok=True)
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": f"{NODE_FOLDER}:{os.environ['PATH']}",
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "no_proxy": "127.0.0.1,localhost",
        "NO_PROXY": "127.0.0.1,localhost",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }


def end_processes_of(home: Path) -> int:
    """Ends every process that has this home: the client itself, and daemons that it left behind."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    psutil.wait_procs(found, timeout=10)
    return len(found)
