"""Small tasks, and models that solve them: what to say next is read from the prompt, so that any number of
attempts can be asked about in any order."""

import re
from collections.abc import Callable

from lathe.text.tool_calls import render
from lathe.types import HiddenTests, Limits, Task, ToolCall

LIMITS = Limits(memory_bytes=512 << 20, num_processes=32, disk_bytes=64 << 20)
UNSEEN = "<|fim_pad|>"  # a token that no text shows: rendered anew, a reply would lack it


def word_task(word: str, **changes) -> Task:
    """Solved when words.py has a function that gives back the task's own word."""
    test = f"import words\n\ndef test_word():\n    assert words.word() == {word!r}\n"
    options = {
        "tests": HiddenTests(report="python", files={"test_word.py": test}, timeout_s=60.0),
        "files": {"words.py": "def word():\n    return None\n", "notes.txt": "old\n"},
        "limits": LIMITS,
        "language": "python",
        **changes,
    }
    return Task(id=word, prompt=f"The word is [{word}]. Make words.word() return it.", **options)


def call(name: str, /, **arguments) -> str:
    return render([ToolCall(name, arguments)])


def solution(word: str) -> str:
    return f"def word():\n    return {word!r}\n"


def solver(*, turns: int = 4, wrong: Callable[[str], bool] = lambda word: False) -> Callable[[str], str]:
    """Answers any prompt about a `word_task`: some turns of bash that write into log.txt, then the solution,
    then a last word. `wrong` says for which words the solution is none."""

    def answer(prompt: str) -> str:
        word = re.search(r"The word is \[([\w-]+)\]", prompt)[1]
        done = prompt.count("</tool_response>")
        if done < turns - 2:
            line = f"echo {word} {done} >> log.txt; cat log.txt"
            return f"{UNSEEN}Step {done}.\n{call('bash', command=line)}"
        if done == turns - 2:
            text = solution("nothing" if wrong(word) else word)
            return f"{UNSEEN}I write it.\n{call('write', file_path='words.py', content=text)}"
        return f"{UNSEEN}words.word() returns {word}."

    return answer
