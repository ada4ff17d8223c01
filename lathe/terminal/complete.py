"""A place in a file on this disk, as a prompt: what stands around it, and what its repository has to say."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from lathe.errors import UserError
from lathe.text import fim
from lathe.text.fim import FimPrompt, SourceFile

if TYPE_CHECKING:
    from lathe.engine.llm import LLM

# Each file costs time before the first word: about 4,000 tokens in all.
MAX_NEARBY_FILES = 8
MAX_NEARBY_CHARS = 16_000
GIT_TIMEOUT_S = 10
SERVER_TIMEOUT_S = 600


@dataclass(frozen=True)
class Place:
    """Before the character `column` of line `line`, both counted from 1; a line's end is a place too."""

    path: Path
    line: int
    column: int


def parse_place(text: str) -> Place:
    """FILE:LINE:COL. Raises UserError."""
    match = re.fullmatch(r"(.+):(\d{1,9}):(\d{1,9})", text, re.DOTALL)
    if match is None or "0" in (match[2], match[3]):
        raise UserError(f"{text} is no place: write FILE:LINE:COL, as in main.py:12:5, counted from 1.")
    return Place(Path(match[1]), int(match[2]), int(match[3]))


def split_at(place: Place, text: str) -> tuple[str, str]:
    """The text before the place and the text behind it. Raises UserError when the text has no such place."""
    lines = text.split("\n")
    if place.line > len(lines):
        raise UserError(f"{place.path} has {len(lines)} lines; there is no line {place.line}.")
    length = len(lines[place.line - 1].removesuffix("\r"))
    if place.column > length + 1:
        raise UserError(
            f"Line {place.line} of {place.path} has {length} characters: "
            f"its last column is {length + 1}, and {place.column} is beyond it."
        )
    start = sum(len(line) + 1 for line in lines[: place.line - 1]) + place.column - 1
    return text[:start], text[start:]


def prompt_at(place: Place, context: Sequence[Path] | None = None) -> FimPrompt:
    """What to ask a model for this place. `context` are the files to show it, the most important last; None
    means those of the same git repository that seem nearest, [] none. Raises UserError."""
    prefix, suffix = split_at(place, read_source(place.path))
    path = place.path.resolve()
    root = repository_of(path)
    if context is None:
        files = nearby_files(path, root, prefix + suffix) if root else []
    else:
        files = [(other.resolve(), read_source(other)) for other in context]
    home = root or path.parent
    return FimPrompt(
        prefix,
        suffix,
        path=path_within(path, home),
        repo_name=home.name,
        files=tuple(SourceFile(path_within(other, home), code) for other, code in files),
    )


def read_source(path: Path) -> str:
    """A file's text, its line ends as they are. Raises UserError."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error


def path_within(path: Path, home: Path) -> str:
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.name


# The repository


def repository_of(path: Path) -> Path | None:
    """The top of the git repository that a file lies in, None where it lies in none."""
    top = git(path.parent, "rev-parse", "--show-toplevel")
    return Path(top.rstrip("\n")).resolve() if top else None


def nearby_files(path: Path, root: Path, text: str) -> list[tuple[Path, str]]:
    """Files of the same kind that git knows or doesn't ignore, the nearest last: those that the text names
    (as an import does), then those in the same folder, then in folders beside it."""
    listed = git(
        root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", f"*{path.suffix}"
    )
    others = {root / name for name in listed.split("\0") if name} - {path}
    words = set(re.findall(r"\w+", text))
    ranked = sorted(others, key=lambda other: (other.stem not in words, distance(path, other), other))
    chosen: list[tuple[Path, str]] = []
    room = MAX_NEARBY_CHARS
    for other in ranked:
        if other.suffix != path.suffix or len(chosen) == MAX_NEARBY_FILES:
            continue
        code = small_source(other, room)
        if code:
            chosen.append((other, code))
            room -= len(code)
    return chosen[::-1]


def small_source(path: Path, max_chars: int) -> str:
    """A file's text; "" for one that is larger, no text, or not to be read: it was not asked for by name."""
    try:
        if not path.is_file() or path.stat().st_size > 4 * max_chars:
            return ""
        code = read_source(path)
    except (OSError, UserError):
        return ""
    return code if len(code) <= max_chars else ""


def distance(path: Path, other: Path) -> int:
    """Folders to walk from one file to the other."""
    shared = sum(1 for one, two in zip(path.parent.parts, other.parent.parts, strict=False) if one == two)
    return len(path.parent.parts) + len(other.parent.parts) - 2 * shared


def git(folder: Path, *words: str) -> str:
    """What git says; "" where it fails, or there is none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, timeout=GIT_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


# Who fills it in


def fill_in(llm: LLM, prompt: FimPrompt, max_tokens: int) -> Iterator[str]:
    """The middle's text as it is sampled. What the context does not hold is left out, farthest first."""
    sampling = fim.ending_middles(llm.tokenizer, replace(fim.DEFAULT_SAMPLING, max_tokens=max_tokens))
    ids, _ = fim.fit(llm.tokenizer, prompt, fim.room_for_prompt(llm.max_context, max_tokens))
    for chunk in llm.stream_generate(ids, sampling):
        yield chunk.text


def ask_server(url: str, prompt: FimPrompt, max_tokens: int, api_key: str | None = None) -> str:
    """The middle, from a server that has llama.cpp's /infill, such as Lathe's. Raises UserError."""
    body = {
        "input_prefix": prompt.prefix,
        "input_suffix": prompt.suffix,
        "input_extra": [{"filename": file.path, "text": file.code} for file in prompt.files],
        "n_predict": max_tokens,
    }
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    base = url.rstrip("/").removesuffix("/v1")
    try:
        reply = httpx.post(f"{base}/infill", json=body, headers=headers, timeout=SERVER_TIMEOUT_S)
        answer = reply.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise UserError(f"{base}/infill did not answer as a server does: {error}.") from error
    match answer:
        case {"content": str(content)}:
            return content
        case {"error": {"message": str(message)}}:
            raise UserError(f"{base}/infill refused with {reply.status_code}: {message}")
    raise UserError(f"{base}/infill answered with {reply.status_code}, and without a content.")
