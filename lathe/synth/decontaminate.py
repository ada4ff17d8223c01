"""Is a task one of a benchmark's? Overlap of n-grams, whatever the case, the punctuation and the names.

Two views of each text: its words, lower-case and without punctuation (Brown et al. 2020, arXiv 2005.14165,
appendix C, look for 13 in a row), and its code's tokens, where each name of the program's own is replaced by
its number in the order of appearance, so that a renamed copy is the same.
"""

from __future__ import annotations

import builtins
import io
import json
import keyword
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lathe.errors import UserError
from lathe.tasks.humaneval import humaneval_problems
from lathe.types import Task

NUM_WORDS = 13
NUM_TOKENS = 20
MAX_CODE_SHARE = 0.5
KEPT_NAMES = frozenset({*keyword.kwlist, *dir(builtins)})


@dataclass
class Benchmarks:
    """The n-grams of benchmarks' problems."""

    words: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, str] = field(default_factory=dict)

    def add(self, name: str, texts: Iterable[str], codes: Iterable[str]) -> None:
        for text in texts:
            self.words.update(dict.fromkeys(ngrams(words_of(text), NUM_WORDS), name))
        for code in codes:
            self.tokens.update(dict.fromkeys(ngrams(tokens_of(code), NUM_TOKENS), name))

    def overlap(self, texts: Iterable[str], codes: Iterable[str]) -> str | None:
        """The problem that a text shares a run of words with, or a code the half of its runs of tokens."""
        for text in texts:
            for each in ngrams(words_of(text), NUM_WORDS):
                if each in self.words:
                    return self.words[each]
        for code in codes:
            mine = ngrams(tokens_of(code), NUM_TOKENS)
            shared = [each for each in mine if each in self.tokens]
            if mine and len(shared) >= MAX_CODE_SHARE * len(mine):
                return self.tokens[shared[0]]
        return None


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def tokens_of(code: str) -> list[str]:
    """A Python program's tokens without comments, layout and docstrings, its own names as numbers.

    What is no Python is cut into words and signs.
    """
    try:
        found = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError):
        plain = re.findall(r"\w+|[^\w\s]", code)
        return numbered((each, each.isidentifier()) for each in plain)
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
               tokenize.ENDMARKER}  # fmt: skip
    pairs = []
    before = tokenize.NEWLINE
    for each in found:
        is_alone = each.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT)
        if each.type not in skipped and not is_alone:
            pairs.append((each.string, each.type == tokenize.NAME))
        if each.type not in (tokenize.NL, tokenize.COMMENT, tokenize.DEDENT):
            before = each.type
    return numbered(pairs)


def numbered(pairs: Iterable[tuple[str, bool]]) -> list[str]:
    numbers: dict[str, str] = {}
    return [
        numbers.setdefault(text, f"name{len(numbers)}") if is_name and text not in KEPT_NAMES else text
        for text, is_name in pairs
    ]


def ngrams(items: list[str], length: int) -> set[int]:
    """The hashes of all runs so long; a shorter list is one run, if it is more than half as long.

    Names were numbered over the whole text: a run is numbered anew, so that its place doesn't matter.
    """
    if len(items) < length:
        return {_hash(items)} if len(items) > length // 2 else set()
    return {_hash(items[start : start + length]) for start in range(len(items) - length + 1)}


def _hash(run: list[str]) -> int:
    numbers: dict[str, str] = {}
    return hash(
        tuple(
            numbers.setdefault(each, f"name{len(numbers)}") if re.fullmatch(r"name\d+", each) else each
            for each in run
        )
    )


def benchmarks_of(paths: Iterable[Path], humaneval: bool = True) -> Benchmarks:
    """HumanEval (raises MissingExtra without the package), and every text in files of JSON lines."""
    known = Benchmarks()
    if humaneval:
        for problem in humaneval_problems():
            prompt = problem["prompt"]
            known.add(problem["task_id"], docstrings_of(prompt), [prompt + problem["canonical_solution"]])
    for path in paths:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The benchmark {path} can't be read: {error}.") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    texts = list(_texts(json.loads(line)))
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: no JSON ({error}).") from error
                known.add(f"{path.name}, line {number}", texts, texts)
    return known


def docstrings_of(code: str) -> list[str]:
    """A prompt's words are its docstrings'; its code is compared as code."""
    return [text.strip("'\"") for text in re.findall(r'""".*?"""|\'\'\'.*?\'\'\'', code, re.DOTALL)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def contaminated(task: Task, known: Benchmarks, codes: Iterable[str] = ()) -> str | None:
    """The problem that the task overlaps with, by its prompt or by these programs (its reference)."""
    return known.overlap([task.prompt], [*codes, *task.files.values()])
