"""What the agent must not see: the tests that show the fault, and other copies of what is broken."""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lathe.sandbox.pool import Pool
from lathe.synth.repository.bugs import Bug, Place
from lathe.synth.repository.checkout import Repository, module_path, shape
from lathe.synth.repository.suite import run_program


def without_tests(text: str, names: Iterable[str]) -> str:
    """A test file without these tests (`test_a`, `TestB::test_c`), all else as it is. A class that would be
    empty keeps a `pass`."""
    wanted = set(names)
    lines = text.splitlines(keepends=True)
    tree = ast.parse(text)
    owners: list[tuple[str, ast.ClassDef | ast.Module]] = [("", tree)]
    owners += [(f"{each.name}::", each) for each in tree.body if isinstance(each, ast.ClassDef)]
    for prefix, owner in owners:
        kept = len(owner.body)
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and prefix + node.name in wanted:
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                last = node.end_lineno or first
                kept -= 1
                while kept and last < len(lines) and not lines[last].strip():
                    last += 1  # the empty lines behind it
                rest = "" if kept else " " * node.col_offset + "pass\n"
                lines[first - 1 : last] = [rest, *[""] * (last - first)]
    return "".join(lines)


def seen_by_agent(repository: Repository, bug: Bug, failing: Iterable[str]) -> dict[str, str]:
    """The files that differ from the repository's: the broken ones, and tests without those that fail.

    The failing tests go because an agent that reads their inputs and results can write those into the
    program; the others stay, as in any repository, for it to see that it breaks nothing else.
    """
    cut: dict[str, set[str]] = defaultdict(set)
    for test in failing:
        path, _, name = test.partition("::")
        cut[path].add(name.split("[")[0])
    return {
        **bug.files,
        **{path: without_tests(repository.texts[path], names) for path, names in cut.items()},
    }


@dataclass(frozen=True)
class Copies:
    """Other copies of a repository's packages that its sandbox shows, with the functions in them."""

    functions: Mapping[str, frozenset[tuple[str, str]]]

    def of(self, repository: Repository, place: Place) -> str | None:
        """Where the function can be looked up, whichever version of it; None: nowhere."""
        path = module_path(place[0], repository.roots)
        for copy, found in self.functions.items():
            if (path, place[1]) in found or (path, "*") in found:
                return copy
        return None


async def find_copies(repository: Repository, pool: Pool) -> Copies:
    """Look through all that a sandbox of the repository's tasks can read."""
    found = json.loads(await run_program(repository, pool, "find_copies.py", {"names": repository.packages}))
    return Copies({path: frozenset((file, name) for file, name in names) for path, names in found.items()})


def twin_of(repository: Repository, bug: Bug) -> str | None:
    """Another function of the repository that does just what a broken one did: `path: name`, else None."""
    broken = {(path, name) for path, name in bug.places}
    shapes = {}
    for path, name in broken:
        for each in repository.functions(path):
            if each.name == name and each.end - each.start >= 2:
                shapes[shape(each.node)] = name
    for path in repository.texts:
        if path.endswith(".py") and shapes:
            for each in repository.functions(path):
                if (path, each.name) not in broken and shape(each.node) in shapes:
                    return f"{path}: {each.name}"
    return None
