"""Who may do what without asking: a mode, and the commands that a person has allowed for this session.

    plan       nothing that writes; commands run where the project is mounted read-only
    ask        reading is free; each change of a file and each command is asked for
    auto-edit  files are changed without asking; commands are asked for
    yolo       nothing is asked

A mode says what is asked, not what is possible: that is the sandbox's part. So an allowed command is a matter
of comfort, and yet read with care: what can't be read for certain is asked for.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from lathe.errors import UserError
from lathe.types import ToolCall

Mode = Literal["plan", "ask", "auto-edit", "yolo"]
Answer = Literal["allow", "ask", "refuse"]
Prefix = tuple[str, ...]

MODES: tuple[Mode, ...] = get_args(Mode)
READERS = frozenset({"read", "grep", "glob", "todo"})
WRITERS = frozenset({"write", "edit"})

# They change nothing, whatever their arguments are.
HARMLESS: frozenset[Prefix] = frozenset(
    (name,) for name in ("ls", "cat", "head", "tail", "wc", "pwd", "echo", "grep", "stat", "true", "which")
) | {("git", "status"), ("git", "ls-files"), ("git", "rev-parse")}

# "python" allowed once would allow every program: of these, the whole command counts.
INTERPRETERS = frozenset(
    (
        *(
            "python",
            "python3",
            "node",
            "perl",
            "ruby",
            "php",
            "lua",
            "bash",
            "sh",
            "zsh",
            "env",
            "sudo",
            "xargs",
        ),
        *("nohup", "time", "timeout", "nice", "find", "awk", "sed", "eval", "exec", "source", "."),
        *("uv", "uvx", "npx", "ssh", "docker", "podman"),
    )
)
# Their second word says what they do.
MULTIPLEXERS = frozenset(
    (
        "git",
        "npm",
        "pnpm",
        "yarn",
        "cargo",
        "go",
        "make",
        "pip",
        "pip3",
        "apt",
        "apt-get",
        "kubectl",
        "poetry",
    )
)


@dataclass
class Approvals:
    """What needs no question. Lives as long as a session does; `allowed` are beginnings of commands."""

    mode: Mode = "ask"
    allowed: set[Prefix] = field(default_factory=set)

    def judge(self, call: ToolCall) -> tuple[Answer, str]:
        """Whether a call may run, and why not."""
        if call.name in READERS or self.mode == "yolo":
            return "allow", ""
        if self.mode == "plan":
            if call.name == "bash":
                return "allow", ""
            return "refuse", "plan mode: nothing is changed before the person agrees to the plan"
        if call.name in WRITERS:
            return ("allow", "") if self.mode == "auto-edit" else ("ask", "it changes a file")
        if call.name == "bash":
            known = HARMLESS | self.allowed
            is_known = is_allowed(str(call.arguments.get("command", "")), known)
            return ("allow", "") if is_known else ("ask", "it runs a command")
        return "ask", "it is another program's tool"

    def allow(self, call: ToolCall) -> None:
        """From now on: all edits for an edit, commands that begin alike for a command."""
        if call.name in WRITERS:
            self.mode = "auto-edit"
        elif call.name == "bash":
            self.allowed.update(prefixes_of(str(call.arguments.get("command", ""))))


def parse_mode(text: str) -> Mode:
    """Raises UserError."""
    for mode in MODES:
        if text == mode:
            return mode
    raise UserError(f"{text} is no mode: choose one of {', '.join(MODES)}.")


def is_allowed(line: str, allowed: Iterable[Prefix]) -> bool:
    """Does every command of a line begin with allowed words? No, where that can't be said for certain."""
    commands = commands_of(line)
    known = set(allowed)
    return bool(commands) and all(
        any(tuple(words[: len(prefix)]) == prefix for prefix in known) for words in commands
    )


def prefixes_of(line: str) -> list[Prefix]:
    """The beginnings that stand for commands like these: [] when the line can't be read for certain."""
    return [prefix_of(words) for words in commands_of(line)]


def prefix_of(words: list[str]) -> Prefix:
    name = words[0].rsplit("/", 1)[-1]
    if name in INTERPRETERS or "=" in words[0]:
        return tuple(words)
    is_verb = len(words) > 1 and not words[1].startswith("-")
    return tuple(words[:2]) if name in MULTIPLEXERS and is_verb else tuple(words[:1])


def commands_of(line: str) -> list[list[str]]:
    """The words of each command that && || ; or | joins. [] when the line does more than that: redirects,
    substitutes, expands, goes on in the background, or doesn't parse."""
    if any(mark in line for mark in "`$\n\\") or any(mark in _outside_quotes(line) for mark in "<>(){}!#~"):
        return []
    try:
        reader = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        reader.whitespace_split = True
        reader.commenters = ""
        words = list(reader)
    except ValueError:
        return []
    commands: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "||", ";", "|"):
            commands.append([])
        elif set(word) <= set(";&|") and word:
            return []
        else:
            commands[-1].append(word)
    if commands and not commands[-1]:
        commands.pop()  # a line may end with ;
    return commands if all(commands) else []


def _outside_quotes(line: str) -> str:
    kept, quote = "", ""
    for char in line:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            kept += char
    return kept
