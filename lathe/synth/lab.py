"""Many programs on many inputs in one sandbox: what a reference gives, and which programs differ from it.

The programs are a corpus' own code and faults put into it, so that no trust is lost when they share a
sandbox; each has a fork and a time of its own. What a model wrote is judged by `tasks.verify` alone.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from lathe.errors import InfrastructureError, SandboxError
from lathe.sandbox.pool import Pool
from lathe.sandbox.spec import SandboxSpec
from lathe.types import Limits, Sandbox

LIMITS = Limits(memory_bytes=1 << 30, num_processes=32, disk_bytes=16 << 20)
MEMORY_BYTES = 512 << 20
CALL_S = 0.1  # of a processor, for one call
PROGRAM_S = 4.0
DEADLINE_S = 20.0  # on the clock, for one program on a busy machine
OUTPUT_BYTES = 32 << 20
PRELOAD = ("re", "math", "decimal", "fractions", "datetime", "collections", "itertools", "functools", "enum",
           "dataclasses", "typing", "string", "statistics", "textwrap", "struct", "json", "copy")  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one call gave. Exactly one of them: `value` as source text, `raises` an exception's name (None for
    one that is no built-in's) with its classes, or `skip`, why no test can be made of it.

    `is_lazy`: the value is what an iterator gave. `after`: the arguments that the call changed, by place.
    """

    value: str | None = None
    raises: tuple[str | None, ...] = ()
    skip: str | None = None
    is_lazy: bool = False
    after: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        after = {int(place): text for place, text in data.get("after", {}).items()}
        return cls(
            data.get("value"), tuple(data.get("raises", ())), data.get("skip"), data.get("lazy", False), after
        )

    def to_json(self) -> dict[str, Any]:
        if self.raises:
            return {"raises": list(self.raises)}
        after = {str(place): text for place, text in self.after.items()}
        return {"value": self.value, **({"after": after} if after else {})}


class Lab:
    """Made by `open_lab`. Raises InfrastructureError where the machine fails."""

    def __init__(self, box: Sandbox):
        self._box = box

    async def observe(
        self, source: str, name: str, inputs: Sequence[str], hash_seed: int | None = None
    ) -> list[Outcome]:
        """What a program's function gives for each input. Those that it never came to are skips.

        With a `hash_seed` a fresh Python runs it, whose sets and dicts have another order.
        """
        (text,) = await self._run([source], name, inputs, None, hash_seed=hash_seed)
        lines = [line for line in text.split("\n") if line.endswith("}")]
        found = [Outcome.from_json(json.loads(line)) for line in lines]
        return found + [Outcome(skip="ends the program")] * (len(inputs) - len(found))

    async def compare(
        self,
        programs: Sequence[str],
        name: str,
        inputs: Sequence[str],
        wanted: Sequence[Outcome],
        *,
        first_only: bool = False,
    ) -> list[str]:
        """For each program one letter an input: 1 as wanted, 0 not, t out of time, m not reached.

        `first_only` stops a program at its first difference.
        """
        if not programs or not inputs:
            return [""] * len(programs)
        texts = await self._run(programs, name, inputs, wanted, first_only=first_only)
        return [text.ljust(len(inputs), "m") for text in texts]

    async def _run(
        self,
        programs: Sequence[str],
        name: str,
        inputs: Sequence[str],
        wanted: Sequence[Outcome] | None,
        *,
        first_only: bool = False,
        hash_seed: int | None = None,
    ) -> list[str]:
        job = {
            "programs": list(programs), "name": name, "inputs": list(inputs), "first_only": first_only,
            "wanted": None if wanted is None else [each.to_json() for each in wanted],
            "same": inside("same.py"), "preload": PRELOAD, "memory_bytes": MEMORY_BYTES,
            "call_s": CALL_S, "program_s": PROGRAM_S, "deadline_s": DEADLINE_S,
        }  # fmt: skip
        source = inside("lab.py")
        start = f"import sys;exec(compile(sys.stdin.buffer.read({len(source.encode())}),'<lab>','exec'))"
        data = source + json.dumps(job)
        timeout_s = 60.0 + DEADLINE_S * len(programs)
        if hash_seed is None:
            done = await self._box.python(
                start, stdin=data, timeout_s=timeout_s, max_output_bytes=OUTPUT_BYTES
            )
        else:
            command = ["python3", "-s", "-P", "-B", "-c", start]
            env = {"PYTHONHASHSEED": str(hash_seed)}
            done = await self._box.exec(
                command, env=env, stdin=data, timeout_s=timeout_s, max_output_bytes=OUTPUT_BYTES
            )
        lines = done.stdout.splitlines()
        if len(lines) != len(programs) or done.truncated:
            last = (done.stderr.strip() or f"exit code {done.exit_code}").splitlines()[-1]
            raise InfrastructureError(f"the lab ran {len(lines)} of {len(programs)} programs: {last}")
        return [json.loads(line) for line in lines]


@asynccontextmanager
async def open_lab(pool: Pool) -> AsyncIterator[Lab]:
    box = await pool.create(SandboxSpec(limits=LIMITS))
    try:
        yield Lab(box)
    finally:
        with suppress(SandboxError):
            await box.close()


def inside(name: str) -> str:
    """The source of a program that runs in a sandbox."""
    return (resources.files("lathe.synth") / "inside" / name).read_text("utf-8")
