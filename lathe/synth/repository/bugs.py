"""Faults that a repository could have: slips, missing bodies, and two at once. Each is a few files' text."""

from __future__ import annotations

import ast
import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lathe.synth.faults import mutations_of
from lathe.synth.mutations import (
    Function,
    Mutation,
    combine,
    docstring_of,
    functions_of,
    mutate,
    without_body,
)
from lathe.synth.repository.checkout import Repository
from lathe.synth.repository.suite import Suite

KINDS = ("slip", "slips", "body", "pair", "commit", "rewrite")
Place = tuple[str, str]  # a file's path and a function's qualified name


@dataclass(frozen=True)
class Bug:
    """A fault: what it changes (path to text), the functions that it changes, and in words what it is.

    `kind` is "slip" (a mutation), "slips" (several in a function), "body" (nothing but signature and
    docstring is left), "pair" (slips in two functions), "commit" (a commit undone) or "rewrite" (a model's).
    """

    kind: str
    note: str
    files: Mapping[str, str]
    places: tuple[Place, ...]

    @property
    def id(self) -> str:
        """The same for the same change of the same files."""
        content = hashlib.sha256()
        for path in sorted(self.files):
            content.update(f"{path}\0{self.files[path]}\0".encode("utf-8", "surrogatepass"))
        name = self.places[0][1].split(".")[-1].strip("_") if self.places else "change"
        return f"{self.kind}-{name}-{content.hexdigest()[:10]}"


def reached_functions(repository: Repository, suite: Suite) -> dict[Place, Function]:
    """The functions that some stable test enters, and that do more than pass or raise."""
    return {
        (path, each.name): each
        for path in repository.sources
        for each in repository.functions(path)
        if suite.reaching.get((path, each.name)) and does_something(each)
    }


def does_something(function: Function) -> bool:
    body = function.node.body[1:] if docstring_of(function.node) else function.node.body
    return any(not isinstance(each, ast.Pass | ast.Raise | ast.Expr) for each in body) or len(body) > 1


def slips_and_bodies(
    repository: Repository, suite: Suite, seed: int, *, per_function: int = 3
) -> Iterator[Bug]:
    """For each function some slips of different kinds, several at once where it has room, and its body gone;
    then slips in two functions of a file. In a random order that the seed decides."""
    rng = random.Random(seed)
    found: list[Bug] = []
    single: dict[str, list[tuple[Place, Mutation]]] = defaultdict(list)
    for place, function in reached_functions(repository, suite).items():
        text = repository.texts[place[0]]
        slips = chosen(mutations_of(text, function), rng, per_function)
        single[place[0]] += [(place, each) for each in slips[:1]]
        found += made(repository, "slip", [[(place, each)] for each in slips])
        if len(slips) >= 2:
            found += made(repository, "slips", [[(place, each) for each in slips[:2]]])
        if is_worth_writing(function):
            found += made(repository, "body", [[(place, without_body(text, function))]])
    for slips_of_file in single.values():
        rng.shuffle(slips_of_file)
        found += made(repository, "pair", [list(both) for both in pairwise(slips_of_file)][::2])
    rng.shuffle(found)
    yield from {each.id: each for each in found}.values()


def slips_in(repository: Repository, places: Iterable[Place], seed: int) -> list[Bug]:
    """Single slips in these functions, in a random order."""
    rng = random.Random(seed)
    found: list[Bug] = []
    for place in places:
        for function in repository.functions(place[0]):
            if function.name == place[1]:
                mutations = chosen(mutations_of(repository.texts[place[0]], function), rng, 20)
                found += made(repository, "slip", [[(place, each)] for each in mutations])
    rng.shuffle(found)
    return found


def is_worth_writing(function: Function) -> bool:
    """Is there a body of some lines, and a docstring that says what it does?"""
    docstring = docstring_of(function.node)
    return docstring is not None and len(function.node.body) > 1 and function.end - docstring.lineno >= 2


def chosen(mutations: Sequence[Mutation], rng: random.Random, count: int) -> list[Mutation]:
    """Some of them, of as many kinds as there are, none in another's place."""
    by_kind: dict[str, list[Mutation]] = defaultdict(list)
    for each in mutations:
        by_kind[each.kind].append(each)
    kinds = sorted(by_kind)
    rng.shuffle(kinds)
    for own in by_kind.values():
        rng.shuffle(own)
    taken: list[Mutation] = []
    while len(taken) < count and any(by_kind.values()):
        for kind in kinds:
            if by_kind[kind] and len(taken) < count:
                mutation = by_kind[kind].pop()
                if not any(overlap(mutation, other) for other in taken):
                    taken.append(mutation)
    return taken


def overlap(one: Mutation, other: Mutation) -> bool:
    return any(a.start <= b.end and b.start <= a.end for a in one.edits for b in other.edits)


def made(repository: Repository, kind: str, groups: Iterable[list[tuple[Place, Mutation]]]) -> Iterator[Bug]:
    """The groups of mutations that make programs."""
    for group in groups:
        (path,) = {place[0] for place, _ in group}
        try:
            text = mutate(repository.texts[path], combine(*(each for _, each in group)))
        except ValueError:
            continue
        places = tuple(dict.fromkeys(place for place, _ in group))
        note = "; ".join(f"{each.kind}, line {each.line}: {each.note}" for _, each in group)
        yield Bug(kind, note, {path: text}, places)


def changed_places(repository: Repository, files: Mapping[str, str]) -> tuple[Place, ...]:
    """The functions that are other ones, or gone, in these files."""
    places = []
    for path, text in files.items():
        try:
            new = ast.parse(text)
        except SyntaxError:
            continue
        now = {each.name: ast.dump(each.node) for each in functions_of(ast.unparse(new))}
        for each in repository.functions(path):
            if now.get(each.name) != ast.dump(ast.parse(ast.unparse(each.node)).body[0]):
                places.append((path, each.name))
    return tuple(places)
