"""Fill in the middle: the prompt that asks a model for the text between two others, and its inverse.

Qwen's layout (the READMEs of Qwen3-Coder and Qwen2.5-Coder; Hui et al. 2024, arXiv 2409.12186):

    <|fim_prefix|>PREFIX<|fim_suffix|>SUFFIX<|fim_middle|>

and, where other files of the repository are shown, behind them and behind the file's own path:

    <|repo_name|>NAME
    <|file_sep|>PATH
    CODE
    <|file_sep|>PATH
    <|fim_prefix|>PREFIX<|fim_suffix|>SUFFIX<|fim_middle|>

A prompt is made of ids, never of text: each control token is placed by us, and names, paths and code are
encoded as text between them. So code that says <|fim_middle|> is read as that code, and ends nothing. The
suffix always follows the prefix: the other order (SPM in Bavarian et al. 2022) is none that Qwen describes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lathe.errors import UserError
from lathe.text.tokenizer import Tokenizer
from lathe.types import SamplingParams

PREFIX, MIDDLE, SUFFIX = "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"
REPO_NAME, FILE_SEP = "<|repo_name|>", "<|file_sep|>"
# What ends a middle, as Qwen3-Coder's README lists it.
STOPS = (PREFIX, SUFFIX, "<|fim_pad|>", REPO_NAME, FILE_SEP, "<|endoftext|>", "<|im_end|>")

# For editors, unless they say otherwise. A suggestion that changes while nothing was typed helps nobody, and
# code repeats itself: what a checkpoint recommends for chats is not used here.
DEFAULT_SAMPLING = SamplingParams(temperature=0.0)


@dataclass(frozen=True)
class SourceFile:
    """A file that is shown to the model: its path within the repository, and its text."""

    path: str
    code: str


@dataclass(frozen=True)
class FimPrompt:
    """A place in a file: the text before it, the text behind it, and what else the model may see.

    The repository's layout is used when there is a `repo_name` or a file in `files`; `path` is part of it.
    The last of the `files` stands nearest to the place.
    """

    prefix: str
    suffix: str
    path: str = ""
    repo_name: str = ""
    files: tuple[SourceFile, ...] = ()

    @property
    def has_repository(self) -> bool:
        return bool(self.repo_name or self.files)


def encode(tokenizer: Tokenizer, prompt: FimPrompt) -> list[int]:
    """The ids of a prompt. Raises UserError when the tokenizer lacks a control token that it needs."""
    return _Parts.of(tokenizer, prompt).joined()


def fit(tokenizer: Tokenizer, prompt: FimPrompt, room: int) -> tuple[list[int], int]:
    """The ids of as much of a prompt as `room` tokens hold, and how many were left out.

    What is nearest to the place stays. Whole files go first, from the front; then the rest of the
    repository's part; then the prefix loses its beginning and the suffix its end, which keeps a quarter of
    the room, or more where the prefix is short. The three control tokens stay, however little room there is.
    """
    parts = _Parts.of(tokenizer, prompt)
    num_whole = parts.num_tokens
    while parts.files and parts.num_tokens > room:
        parts = replace(parts, files=parts.files[1:])
    if parts.num_tokens > room:
        parts = replace(parts, repository=[], place=[])
    if parts.num_tokens > room:
        left = max(room - 3, 0)
        num_suffix = min(len(parts.suffix), max(left // 4, left - len(parts.prefix)))
        num_prefix = left - num_suffix
        start = max(len(parts.prefix) - num_prefix, 0)
        parts = replace(parts, prefix=parts.prefix[start:], suffix=parts.suffix[:num_suffix])
    return parts.joined(), num_whole - parts.num_tokens


def stop_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a middle: those of Qwen's list that the tokenizer has."""
    return tuple(tokenizer.special_tokens[mark] for mark in STOPS if mark in tokenizer.special_tokens)


def ending_middles(tokenizer: Tokenizer, sampling: SamplingParams) -> SamplingParams:
    """The same sampling, ended by the tokens that end a middle as well."""
    stops = dict.fromkeys([*sampling.stop_token_ids, *stop_token_ids(tokenizer)])
    return replace(sampling, stop_token_ids=tuple(stops))


def room_for_prompt(max_context: int, max_tokens: int | None) -> int:
    """The tokens that a prompt may take: what the reply leaves, but never less than half of the context."""
    reserved = max_context // 4 if max_tokens is None else max_tokens
    return max_context - max(1, min(reserved, max_context // 2))


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[FimPrompt, str]:
    """The prompt that some ids are, and the middle behind it, up to a token that ends it.

    Raises ValueError when the ids are not laid out as `encode` does it.
    """
    prefix, suffix, middle = _control_ids(tokenizer, (PREFIX, SUFFIX, MIDDLE))
    repository, rest = _cut(ids, prefix)
    before, rest = _cut(rest, suffix)
    after, written = _cut(rest, middle)
    stops = stop_token_ids(tokenizer)
    end = next((place for place, token_id in enumerate(written) if token_id in stops), len(written))
    prompt = FimPrompt(tokenizer.decode(before), tokenizer.decode(after))
    if repository:
        prompt = _read_repository(tokenizer, repository, prompt)
    return prompt, tokenizer.decode(written[:end])


@dataclass(frozen=True)
class _Parts:
    """A prompt's ids, part by part. The control tokens in front of prefix, suffix and middle are `marks`."""

    marks: tuple[int, ...]
    repository: list[int]
    files: list[list[int]]
    place: list[int]
    prefix: list[int]
    suffix: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: FimPrompt) -> _Parts:
        marks = _control_ids(tokenizer, (PREFIX, SUFFIX, MIDDLE))
        repository: list[int] = []
        files: list[list[int]] = []
        place: list[int] = []
        if prompt.has_repository:
            name_mark, file_mark = _control_ids(tokenizer, (REPO_NAME, FILE_SEP))
            if prompt.repo_name:
                repository = [name_mark, *tokenizer.encode(prompt.repo_name + "\n")]
            files = [[file_mark, *tokenizer.encode(f"{file.path}\n{file.code}\n")] for file in prompt.files]
            place = [file_mark, *tokenizer.encode(prompt.path + "\n")]
        return cls(
            marks, repository, files, place, tokenizer.encode(prompt.prefix), tokenizer.encode(prompt.suffix)
        )

    @property
    def num_tokens(self) -> int:
        around = len(self.repository) + sum(map(len, self.files)) + len(self.place)
        return around + len(self.marks) + len(self.prefix) + len(self.suffix)

    def joined(self) -> list[int]:
        prefix, suffix, middle = self.marks
        files = [token_id for file in self.files for token_id in file]
        here = [prefix, *self.prefix, suffix, *self.suffix, middle]
        return [*self.repository, *files, *self.place, *here]


def _read_repository(tokenizer: Tokenizer, ids: Sequence[int], prompt: FimPrompt) -> FimPrompt:
    name_mark, file_mark = _control_ids(tokenizer, (REPO_NAME, FILE_SEP))
    repo_name = ""
    if ids[0] == name_mark:
        name, rest = _cut(ids, file_mark)
        repo_name = tokenizer.decode(name[1:]).removesuffix("\n")
        ids = [file_mark, *rest]
    elif ids[0] != file_mark:
        raise ValueError("these ids begin with neither a repository's name nor a file nor a prefix")
    sections: list[list[int]] = []
    for token_id in ids:
        if token_id == file_mark:
            sections.append([])
        else:
            sections[-1].append(token_id)
    *files, place = [tokenizer.decode(section) for section in sections]
    return replace(
        prompt,
        path=place.removesuffix("\n"),
        repo_name=repo_name,
        files=tuple(SourceFile(*_cut_line(file)) for file in files),
    )


def _cut_line(file: str) -> tuple[str, str]:
    path, _, code = file.partition("\n")
    return path, code.removesuffix("\n")


def _cut(ids: Sequence[int], mark: int) -> tuple[list[int], list[int]]:
    if mark not in ids:
        raise ValueError(f"the control token {mark} is missing: this is no prompt to fill in a middle")
    place = list(ids).index(mark)
    return list(ids[:place]), list(ids[place + 1 :])


def _control_ids(tokenizer: Tokenizer, marks: Sequence[str]) -> tuple[int, ...]:
    missing = [mark for mark in marks if mark not in tokenizer.special_tokens]
    if missing:
        raise UserError(
            f"This model can't fill in the middle like this: its tokenizer has no {', '.join(missing)}. "
            "Use one that was trained on it, such as Qwen3-Coder."
        )
    return tuple(tokenizer.special_tokens[mark] for mark in marks)
