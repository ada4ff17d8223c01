"""What a person types: slash commands, mentions of files, and what completes them. No terminal in here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from lathe.agent.approvals import MODES
from lathe.errors import UserError


@dataclass(frozen=True)
class SlashCommand:
    name: str
    argument: str
    help: str


COMMANDS: tuple[SlashCommand, ...] = (
    SlashCommand("help", "", "what can be typed"),
    SlashCommand("mode", "[MODE]", f"what is asked before it is done: {', '.join(MODES)}"),
    SlashCommand("model", "[NAME or URL]", "who answers from now on"),
    SlashCommand("diff", "", "what was changed since the session began here"),
    SlashCommand("rewind", "[N]", "conversation and files as they were before your N-th turn"),
    SlashCommand("context", "", "what fills the model's window"),
    SlashCommand("stats", "", "turns, tokens, speed, tool times"),
    SlashCommand("compact", "", "sum the conversation up, to make room"),
    SlashCommand("sessions", "", "this project's sessions"),
    SlashCommand("resume", "[ID]", "go on with another session"),
    SlashCommand("clear", "", "forget the conversation; files stay"),
    SlashCommand("quit", "", "leave (so does Ctrl-D, and Ctrl-C twice)"),
)
ALIASES = {"exit": "quit", "undo": "rewind", "?": "help"}


@dataclass(frozen=True)
class Typed:
    """A command with its argument, "" when there is none."""

    name: str
    argument: str = ""


def parse_command(line: str) -> Typed | None:
    """The slash command that a turn is; None for words to the agent. Raises UserError for an unknown one.

    A path is no command: "/etc/hosts is wrong" is said to the agent.
    """
    match = re.fullmatch(r"/([a-z?]+)(?:\s+(.*))?", line.strip())
    if match is None:
        return None
    name = ALIASES.get(match[1], match[1])
    known = [command.name for command in COMMANDS]
    if name not in known:
        close = get_close_matches(name, [*known, *ALIASES], n=1, cutoff=0.5)
        hint = f"Did you mean /{close[0]}?" if close else "/help lists what there is."
        raise UserError(f"There is no /{match[1]}. {hint}")
    return Typed(name, (match[2] or "").strip())


MENTION = re.compile(r"(?<![^\s(\"'])@((?:[^\s@\"'()\\]|\\ )+)")


def mentions(text: str) -> list[str]:
    """The files that a turn names with @, each once, as they are written: "look at @src/a.py" names src/a.py.
    A space in a name is written with a backslash. Punctuation at the end belongs to the sentence."""
    found = (match[1].replace("\\ ", " ").rstrip(".,;:!?") for match in MENTION.finditer(text))
    return list(dict.fromkeys(name for name in found if name))


def completions(before: str, files: Sequence[str], sessions: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
    """What may stand at the cursor, and how many characters before it are replaced."""
    command = re.fullmatch(r"/([a-z]*)", before)
    if command is not None:
        for each in COMMANDS:
            if each.name.startswith(command[1]):
                yield f"/{each.name}", len(before)
        return
    argument = re.fullmatch(r"/(mode|resume)\s+(\S*)", before)
    if argument is not None:
        choices = MODES if argument[1] == "mode" else sessions
        for choice in choices:
            if choice.startswith(argument[2]):
                yield choice, len(argument[2])
        return
    mention = re.search(r"(?<!\S)@((?:[^\s@]|\\ )*)$", before)
    if mention is not None:
        typed = mention[1].replace("\\ ", " ").lower()
        for name in ranked(files, typed)[:50]:
            yield "@" + name.replace(" ", "\\ "), len(mention[0])


def ranked(files: Sequence[str], typed: str) -> list[str]:
    """Files that hold what was typed: first those whose own name begins with it, then paths that do."""

    def rank(name: str) -> tuple[bool, bool, int, str]:
        lower = name.lower()
        return (
            not lower.rsplit("/", 1)[-1].startswith(typed),
            not lower.startswith(typed),
            len(name),
            name,
        )

    return sorted((name for name in files if typed in name.lower()), key=rank)
