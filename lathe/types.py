"""The nouns that every room shares, and the protocols between the agent's floor and what it works with.

Plain frozen data, standard library only. Who makes what:
a client's JSON or an agent's turn becomes a `Trajectory`; a `Model` answers it with a `Completion`;
`Trajectory.extend` joins the two, and refuses when the tokens do not line up. One attempt at a task, with
what it earned, is a `Rollout`; as a line of JSON it is read and written by `jsonl.py`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from lathe.errors import CommandFailed, CommandTimedOut

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "abort"]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. `parameters` is a JSON schema of type object, or None.

    `strict`: where calls are imposed by a grammar, `parameters` must be imposed whole, or the request fails.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True)
class ToolCall:
    """One call that the model made. `arguments` is always a decoded object, never JSON text."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    A tool's result has role "tool" and names the call it answers in `tool_call_id`.
    `reasoning` is what a thinking model wrote before its answer; it is no part of `content`.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class Grammar:
    """What a reply must look like, whatever the model would rather say.

    `kind` names the language of `source`: a JSON schema as JSON text, a regular expression (Rust's syntax)
    for the whole reply, or a grammar in llguidance's dialect of Lark.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens. The defaults change nothing about the model's distribution.

    `top_k=0` and `min_p=0` mean off. `max_tokens=None` means: as much as the context holds.
    `logprobs` is the number of alternatives to report beside each sampled token (0: only the sampled
    token's own), None for no report to the user.
    `repetition_penalty` divides (or multiplies, when negative) the logits of every token that the
    prompt or the reply already holds (Keskar et al. 2019, CTRL); `presence_penalty` and
    `frequency_penalty` look at the reply alone, as OpenAI defines them.
    `n` asks for that many independent replies to one prompt.
    `prompt_logprobs` reports the prompt's own tokens as `logprobs` does the reply's, None for no report.
    `deterministic` gives the same ids and bit-identical log-probabilities whoever else is served.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    grammar: Grammar | None = None
    deterministic: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """A sampled token, its log-probability and the best alternatives (id, log-probability), best first.

    Log-probabilities are natural logarithms of the model's own distribution: temperature 1, before
    penalties and truncation.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """What a model answered: the exact ids it saw, the exact ids it sampled, and their meaning.

    `token_ids` ends with the end-of-sequence id when the model ended its turn.
    `finish_reason` is "length" whenever `max_tokens` or the context cut the reply, also inside a call, and
    "abort" when it was cut from outside: the server stopped, or the client left.
    `prompt_logprobs` is empty unless they were asked for; the first token has none, as nothing precedes it.
    `weights_version` is that of the weights that drew the reply's first token. Where newer ones took over
    before its end, `weights_updates` has the place of the first token that they drew, and their version.
    `stop_string` is the one of `SamplingParams.stop` that ended the reply, None when something else did.
    `num_reasoning_tokens` of the reply's tokens are its thought and the thought's tags.
    `is_exact` is False where ids or log-probabilities are not those that were sampled: another engine gave
    the text, and not all of its tokens. Nothing can be trained on it. Where it gave no ids at all, `counted`
    is how many tokens of prompt and reply it says there were.
    """

    message: Message
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    num_cached_tokens: int = 0
    weights_version: int = 0
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    stop_string: str | None = None
    num_reasoning_tokens: int = 0
    is_exact: bool = True
    weights_updates: tuple[tuple[int, int], ...] = ()
    counted: tuple[int, int] | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """How long the prompt was; 0 where nobody knows."""
        return len(self.prompt_token_ids) if self.counted is None else self.counted[0]

    @property
    def num_reply_tokens(self) -> int:
        """How many tokens were sampled; 0 where nobody knows."""
        return len(self.token_ids) if self.counted is None else self.counted[1]


class TokensDoNotExtend(ValueError):
    """A prompt does not begin with the tokens that the trajectory already holds."""


@dataclass(frozen=True)
class Segment:
    """One reply inside a trajectory: the tokens [start, stop) were sampled together.

    `weights_version` drew the first of them; from each place in `weights_updates` on, another version did.
    `sampling` is how they were drawn, None where nobody noted it: the trajectory's log-probabilities are
    those of the model's own distribution.
    """

    start: int
    stop: int
    finish_reason: FinishReason
    weights_version: int = 0
    weights_updates: tuple[tuple[int, int], ...] = ()
    sampling: SamplingParams | None = None

    @property
    def weights_versions(self) -> tuple[int, ...]:
        """The versions that sampled here, in their order."""
        return (self.weights_version, *(version for _, version in self.weights_updates))


@dataclass(frozen=True)
class Trajectory:
    """A conversation and the tokens that it was: the request to a model, and a row for the trainer.

    `token_ids`, `loss_mask` (True where the model sampled the token for this trajectory) and `logprobs` (0.0
    where it did not) have one length; they cover every token seen so far. Sampled text is never tokenized
    again. `segments` says which weights drew which of them, reply by reply.
    `messages` may run ahead of `token_ids`: turns that no model has read yet. Raw text has no messages.
    A trajectory with a `parent` repeats some of its parent's tokens as prompt, unmasked: whatever branches,
    each sampled token is marked once.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    token_ids: tuple[int, ...] = ()
    loss_mask: tuple[bool, ...] = ()
    logprobs: tuple[float, ...] = ()
    segments: tuple[Segment, ...] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    parent: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights_versions(self) -> tuple[int, ...]:
        """The versions that sampled here, each once, oldest first."""
        return tuple(sorted({version for each in self.segments for version in each.weights_versions}))

    def add(self, *messages: Message) -> Trajectory:
        """The conversation with more turns, not yet read by a model."""
        return replace(self, messages=self.messages + messages)

    def extend(self, completion: Completion, sampling: SamplingParams | None = None) -> Trajectory:
        """The conversation with the answer, and how it was drawn. Raises TokensDoNotExtend when the answer's
        prompt is another one.

        An answer whose ids nobody knows adds its message alone: `token_ids` stay what is known of the
        beginning, and where later ids cover it, they are prompt. Ids that are not exactly those which were
        sampled are unmasked, as a prompt's are.
        """
        prompt = completion.prompt_token_ids
        if not completion.is_exact and not prompt:
            return self.add(completion.message)
        if prompt[: len(self.token_ids)] != self.token_ids:
            raise TokensDoNotExtend(
                f"the prompt's {len(prompt)} tokens do not begin with the trajectory's {len(self.token_ids)}"
            )
        num_new = len(prompt) - len(self.token_ids)
        num_sampled = len(completion.token_ids)
        known = completion.is_exact
        logprobs = tuple(entry.logprob if known else 0.0 for entry in completion.logprobs)
        segment = Segment(
            len(prompt),
            len(prompt) + num_sampled,
            completion.finish_reason,
            completion.weights_version,
            tuple((len(prompt) + place, version) for place, version in completion.weights_updates),
            sampling,
        )
        return replace(
            self,
            messages=(*self.messages, completion.message) if self.messages else (),
            token_ids=prompt + completion.token_ids,
            loss_mask=self.loss_mask + (False,) * num_new + (known,) * num_sampled,
            logprobs=self.logprobs + (0.0,) * num_new + logprobs,
            segments=(*self.segments, segment),
        )


@dataclass(frozen=True)
class Limits:
    """What a sandbox may use. None: as much as the machine lets it.

    `memory_bytes` bounds all of its processes together where cgroups are writable, else each by itself.
    `num_processes` counts threads. `disk_bytes` and `num_files` bound what it writes.
    `idle_s` and `lifetime_s` end a sandbox that nobody uses, or that has been used for so long.
    """

    memory_bytes: int | None = 2 << 30
    num_processes: int | None = 256
    disk_bytes: int | None = 1 << 30
    num_files: int | None = 100_000
    file_bytes: int | None = 512 << 20
    cpu_s: float | None = None
    num_cpus: float | None = None
    idle_s: float | None = None
    lifetime_s: float | None = None


@dataclass(frozen=True)
class HiddenTests:
    """How a task is judged (`tasks/verify.py`). `files` (path to text) are hidden from the agent.

    `report` says how each test is known to have passed. "pytest": `files` are laid into the workdir, and
    those named test_*.py are run. "python": the test functions of `files` run in a process of their own,
    which calls the solution in another; plain data passes between them. "stdio": `command` reads the input of
    each of `cases` and must write its output. "lines": `command` reads a word from its standard input and
    writes `WORD PASS name` or `WORD FAIL name` for each test.
    `must_pass` are the tests that decide. Empty means all that stand in `files`, or all cases.
    """

    command: tuple[str, ...] = ()
    report: Literal["pytest", "python", "stdio", "lines"] = "pytest"
    files: Mapping[str, str] = field(default_factory=dict)
    must_pass: tuple[str, ...] = ()
    cases: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 60.0


@dataclass(frozen=True)
class Task:
    """A problem with a way to tell whether it was solved. Pure data; `tasks/store.py` keeps them in files.

    The agent sees `prompt`, and in `workdir` what `image` holds there with `files` (path to text) laid over
    it. `image` is the id of an image (see `sandbox/images.py`), None for this machine's own programs.
    `setup` are lines that prepare the place before the agent comes; what they do is no part of its patch.
    `protected` are paths, as patterns, that an attempt can't change: they are put back before it is judged.
    """

    id: str
    prompt: str
    tests: HiddenTests
    files: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    workdir: str = "/work"
    setup: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    language: str | None = None
    source: str | None = None
    licence: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What an attempt earned, or why it can't be judged.

    Valid with a `reward` and the `evidence` for it (JSON), or invalid with a `reason`: a sandbox that failed
    is no wrong answer, and must never reach a gradient. Raises ValueError unless it is exactly one of them.
    `suspect` says, in words, which sign of cheating was seen; such an attempt never earns more than 0.
    """

    reward: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    suspect: str | None = None

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.reason is None):
            raise ValueError("a verdict has either a reward (valid) or a reason (invalid)")
        if self.suspect is not None and (self.reward or 0.0) > 0.0:
            raise ValueError("a suspect attempt earns nothing")

    @property
    def valid(self) -> bool:
        return self.reward is not None


@dataclass(frozen=True)
class Rollout:
    """One attempt at a task: what was said, why it ended, and what it earned.

    A served conversation, an eval's log, a row for SFT and a sample for RL are all this. `trajectories` stand
    in the order in which they began; a sub-agent's, a compacted or a forked one names its parent.
    `stop_reason` is the last reply's finish_reason, or the word of whoever ended the attempt. `verdict` is
    None as long as nobody has judged; `task` None for a conversation that is no task. `model` is the name
    that the model was loaded by, `info` whatever JSON the maker adds.
    """

    trajectories: tuple[Trajectory, ...]
    stop_reason: str | None = None
    verdict: Verdict | None = None
    task: str | None = None
    model: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExecResult:
    """What became of one command.

    `exit_code` is the command's own, 128 + n when signal n ended it. Output is decoded from UTF-8, with what
    isn't replaced; `truncated` says that its middle was left out, where a line in it says how much.
    A command that failed is a result, not an error, until someone calls `check`.
    """

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    timed_out: bool = False
    truncated: bool = False
    duration_s: float = 0.0

    def check(self) -> ExecResult:
        """The result itself. Raises CommandTimedOut, or CommandFailed when the exit code is not 0."""
        if self.timed_out:
            raise CommandTimedOut(f"the command was killed after {self.duration_s:.1f} s", self)
        if self.exit_code != 0:
            last = self.stderr.strip() or self.stdout.strip()
            raise CommandFailed(f"the command ended with {self.exit_code}: {last[-2000:]}", self)
        return self


@dataclass(frozen=True)
class FileInfo:
    """An entry of a folder in a sandbox. A link is "link", whatever it points to."""

    path: str
    kind: Literal["file", "folder", "link", "other"]
    num_bytes: int
    mode: int


class Process(Protocol):
    """A command that runs in a sandbox's background, its output kept until it is read."""

    async def wait(self, timeout_s: float | None = None) -> ExecResult:
        """What became of it, with all of its output. Raises TimeoutError if it still runs; it goes on."""
        ...

    def output(self) -> tuple[str, str]:
        """What it has written so far: stdout, stderr."""
        ...

    async def kill(self) -> None:
        """End it and all that it started."""
        ...


class Shell(Protocol):
    """One bash that lives on between commands: its folder, variables and functions stay."""

    async def run(self, line: str, *, timeout_s: float | None = 120.0) -> ExecResult:
        """One command line. At the limit its processes are killed, and the shell lives on."""
        ...

    async def close(self) -> None: ...


class Sandbox(Protocol):
    """A place in which code that a model wrote may run. `lathe.sandbox` has the backends.

    Paths are the sandbox's own; relative ones start at `workdir`. Everything raises SandboxGone when the
    sandbox is no more, and InfrastructureError when the machine failed.
    """

    id: str
    workdir: str

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
        timeout_s: float | None = 120.0,
        max_output_bytes: int = 1 << 20,
        on_output: Callable[[Literal["stdout", "stderr"], bytes], None] | None = None,
    ) -> ExecResult:
        """Run one command to its end: a program with its arguments, or a line for `/bin/sh`.

        It ends when its first process does, or at the limit: then all that it started is killed, too. Of
        either output, `max_output_bytes` are kept, head and tail. `on_output` hears all of it as it comes.
        """
        ...

    async def python(
        self,
        code: str,
        *,
        stdin: str | bytes | None = None,
        timeout_s: float | None = 120.0,
        max_output_bytes: int = 1 << 20,
    ) -> ExecResult:
        """Run `python3 -I -B -c CODE` in the workdir, from a process that has imported pytest and much of
        the standard library already, where the backend has one."""
        ...

    async def start(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
    ) -> Process:
        """Run a command in the background, until it ends or the sandbox does."""
        ...

    async def shell(self, *, cwd: str | None = None, env: Mapping[str, str] | None = None) -> Shell: ...

    async def read(self, path: str, *, max_bytes: int = 16 << 20) -> bytes:
        """A regular file's content. Raises FileNotFoundError, IsADirectoryError, PermissionError; ValueError
        for a file that is longer, or no regular one."""
        ...

    async def write(self, path: str, data: str | bytes, *, mode: int | None = None) -> None:
        """Put a whole file in place of what is there, with the folders that it needs."""
        ...

    async def list(self, path: str = ".") -> list[FileInfo]:
        """The entries of a folder, by name."""
        ...

    async def upload(self, source: Path, path: str) -> None:
        """Copy a file or a folder of this machine into the sandbox. Links are copied as links."""
        ...

    async def download(self, path: str, target: Path) -> None:
        """Copy a file or a folder out of the sandbox. No link in it can make this touch other files."""
        ...

    async def snapshot(self) -> str:
        """Freeze all that was written so far, and go on. The id of an image that sandboxes can start from."""
        ...

    async def fork(self) -> Sandbox:
        """Another sandbox with the same files. Processes are not copied."""
        ...

    async def hibernate(self) -> None:
        """End its processes and keep its files: it costs no memory, until the next use resumes it."""
        ...

    async def resume(self) -> None: ...

    async def close(self) -> None:
        """End it and delete what it wrote. Closing twice is no error."""
        ...


class Model(Protocol):
    """Anything that answers a trajectory: the engine in this process, or a server over HTTP."""

    async def complete(
        self,
        trajectory: Trajectory,
        sampling: SamplingParams | None = None,
        *,
        on_event: Callable[[Any], None] | None = None,
    ) -> Completion:
        """One answer. `sampling=None` means the model's own defaults. Raises errors.PromptTooLong.

        `on_event` hears the answer as it comes, in the events of `text.tool_calls`: Content, Reasoning,
        CallStarted, ArgumentText, CallFinished.
        """
        ...
