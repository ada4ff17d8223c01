"""What the suite knows of a coding agent, and the task that all of them are given."""

import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from lathe.types import ToolCall

INSTALLED = Path(__file__).parents[2] / ".clients"
NODE = "node@22.23.3"  # some need 22, and where Node is older, npm quietly gives them an old release
NODE_FOLDER = INSTALLED / "node/node_modules/node/bin"

TASK = "Write greet.py and notes.txt, then look at greet.py."
THANKS = "Thank you."
GREET = 'print("Grüße, 世界 🎈", "<b>&amp;</b>")\n'
NOTES = 'A note.\n\n\tIndented, "quoted", $HOME and `code`.\n{"not": "a call\\n"}\n'

WINDOW = 262_144


@dataclass(frozen=True)
class Line:
    """One reply of the model. The words tell it apart from the other lines; calls or edits come behind."""

    words: str
    calls: tuple[ToolCall, ...] = ()
    edits: str = ""


@dataclass(frozen=True)
class Agent:
    """`installer` brings `packages`, the agent itself first, and with them `program`; None: the development
    environment has them.

    `mark` stands in every prompt of the conversation and in no other: agents also ask for titles, summaries
    and memories. `commands` are given the server's URL and run one after the other; `environment` and
    `settings` (files in the agent's home, by path) are given it too. `lines` are given the folder.
    """

    name: str
    program: str
    installer: Literal["npm", "pip"] | None
    packages: tuple[str, ...]
    mark: str
    lines: Callable[[Path], list[Line]]
    commands: Callable[[str], list[list[str]]]
    environment: Callable[[str], Mapping[str, str]] = lambda url: {}
    settings: Callable[[str], Mapping[str, str]] = lambda url: {}
    num_trajectories: int = 1  # of the conversation, when it is recorded
    cached_share: float = 0.99  # of the conversation so far, at each prompt after the first

    @property
    def executable(self) -> Path:
        if self.installer is None:
            return Path(sys.executable)
        folder = "node_modules/.bin" if self.installer == "npm" else "bin"
        return INSTALLED / self.program / folder / self.program

    @property
    def why_not(self) -> str | None:
        """Why it can't be run here; install.py leaves a note when it fails."""
        if self.executable.exists():
            return None
        note = INSTALLED / self.program / "why-not.txt"
        how = f"make test-clients CLIENTS={self.program}"
        return note.read_text() if note.exists() else f"{self.program} is not installed: {how}"

    @property
    def version(self) -> str:
        if self.installer is None:
            return importlib.metadata.version(self.packages[0])
        return self.packages[0].replace("==", "@").rpartition("@")[2]


def conversation(
    write: Callable[[str, str], ToolCall],
    read: Callable[[str], ToolCall],
    *,
    end: tuple[ToolCall, ...] = (),
    goes_on: bool = True,
) -> Callable[[Path], list[Line]]:
    """Two calls at once, one more, and the last words (with a call that ends the run, for agents that want
    one). Where the conversation goes on, somebody says thanks.
    """
    return lambda folder: [
        Line(
            "I write both files now.",
            (write(f"{folder}/greet.py", GREET), write(f"{folder}/notes.txt", NOTES)),
        ),
        Line("I look at the first.", (read(f"{folder}/greet.py"),)),
        Line("Both files are as you wanted.", end),
        *([Line("You are welcome.")] if goes_on else []),
    ]


def shell(
    call: Callable[[str], ToolCall], *, end: tuple[str, ...] = (), goes_on: bool = True
) -> Callable[[Path], list[Line]]:
    """The conversation of an agent that does everything in a shell."""
    return conversation(
        lambda path, text: call(f"cat > {quote(path)} <<'END'\n{text}END"),
        lambda path: call(f"cat {quote(path)}"),
        end=tuple(call(command) for command in end),
        goes_on=goes_on,
    )
