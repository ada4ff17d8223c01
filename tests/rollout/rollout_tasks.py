"""Small tasks, and models that solve them: what to say next is read from the prompt, so that any number of
attempts can be asked about in any order."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from lathe.errors import SandboxGone
from lathe.sandbox.pool import Pool
from lathe.testing import FaultyPool
from lathe.text.tool_calls import render
from lathe.types import HiddenTests, Limits, Rollout, Task, ToolCall

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


class Watched(FaultyPool):
    """A pool that never fails by itself, and knows how many of its sandboxes are still open."""

    def __init__(self, pool: Pool):
        super().__init__(pool, lambda name: False)
        self.boxes = []

    @property
    def num_created(self) -> int:
        return len(self.boxes)

    async def create(self, spec=None):
        self.boxes.append(await super().create(spec))
        return self.boxes[-1]

    async def num_open(self) -> int:
        count = 0
        for box in self.boxes:
            with suppress(SandboxGone):
                await box.exec("true")
                count += 1
        return count


def plain(rollout: Rollout) -> tuple:
    """What a rollout says, without the ids and times that differ from run to run."""

    def conversation(trajectory):
        messages = [
            replace(
                each,
                tool_call_id=None,
                tool_calls=tuple(replace(call, id="") for call in each.tool_calls),
            )
            for each in trajectory.messages
        ]
        return replace(trajectory, id="", messages=tuple(messages))

    info = {name: value for name, value in rollout.info.items() if name != "seconds"}
    said = [conversation(each) for each in rollout.trajectories]
    return said, rollout.stop_reason, rollout.verdict.reward, rollout.verdict.reason, info
