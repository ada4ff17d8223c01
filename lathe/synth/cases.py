"""Inputs for a function, found and validated by running its reference."""

from __future__ import annotations

import ast
import itertools
import random
from collections import Counter
from collections.abc import Sequence

from lathe.synth.argument_types import Observed, Parameter, parameters_of
from lathe.synth.book import Drop
from lathe.synth.extract import Program
from lathe.synth.inputs import CantMake, Constants, drawn_calls, observed_calls
from lathe.synth.lab import Lab, Outcome
from lathe.synth.suite import Case

MAX_RAISING = 0.2  # of the inputs that are kept
OFTEN = 0.6  # of them with one outcome: others are looked for
MAX_USUAL = 0.95
MIN_CASES = 10
MAX_COMBINATIONS = 24
TRIES = 8  # inputs for each combination of types


class Dropped(Exception):
    """A candidate that comes to nothing; `drop` says why."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.drop = Drop(reason, detail)


async def find_cases(
    lab: Lab, program: Program, observed: Sequence[Observed], count: int, seed: int, more: Sequence[str] = ()
) -> list[Case]:
    """At most about `count` calls with their outcomes: those that the corpus makes, `more`, and drawn ones.

    The reference must give plain data for them, the same in two runs (in the other order, with another hash
    seed), and raise nothing that it doesn't announce. Raises Dropped where too few are left.
    """
    known = Constants.of(program.tree)
    parameters = parameters_of(program.function, observed)
    if not parameters:
        raise Dropped("no type for its arguments")
    combinations = await choose_types(lab, program, parameters, known, seed)
    drawn = draw_inputs(parameters, combinations, known, count, seed)
    inputs = list(dict.fromkeys([*observed_calls(observed), *more, *drawn]))
    cases, why = await validated(lab, program, inputs, seed)
    if why["differs between runs"] > 0.1 * len(inputs):
        raise Dropped("not deterministic")
    if len(cases) < MIN_CASES:
        raise Dropped(*reason_for(why.most_common(1)[0][0] if why else "few inputs"))
    usual, share = usual_outcome(cases)
    if share > OFTEN:
        again = draw_inputs(parameters, combinations, known, 3 * count, seed + 1000)
        others, _ = await validated(lab, program, [each for each in again if each not in inputs], seed)
        cases += [case for case in others if outcome_key(case) != usual]
        random.Random(seed).shuffle(cases)
        usual, share = usual_outcome(cases)
    if share > MAX_USUAL:
        raise Dropped("gives nearly always the same", f"{share:.0%} {usual[0]}"[:200])
    return cases


def draw_inputs(
    parameters: Sequence[Parameter],
    combinations: Sequence[tuple[str, ...]],
    known: Constants,
    count: int,
    seed: int,
) -> list[str]:
    """As many of each combination of types, mixed. Raises Dropped."""
    drawn: list[str] = []
    each = -(-count // len(combinations))
    for place, types in enumerate(combinations):
        try:
            drawn += drawn_calls(parameters, types, known, each, seed + place)
        except CantMake as error:
            raise Dropped("no type for its arguments", str(error)) from error
    random.Random(seed).shuffle(drawn)
    return drawn


def outcome_key(case: Case) -> tuple[str | None, tuple[str | None, ...], str]:
    return (case.wanted.value, case.wanted.raises[:1], str(case.wanted.after))


def usual_outcome(cases: Sequence[Case]) -> tuple[tuple[str | None, tuple[str | None, ...], str], float]:
    """The commonest outcome, and its share."""
    ((usual, number),) = Counter(map(outcome_key, cases)).most_common(1)
    return usual, number / len(cases)


async def validated(
    lab: Lab, program: Program, inputs: Sequence[str], seed: int
) -> tuple[list[Case], Counter[str]]:
    """The inputs that a test can be made of, and how often others were refused for each reason."""
    first = await lab.observe(program.source, program.name, inputs)
    backwards = await lab.observe(program.source, program.name, inputs[::-1], hash_seed=seed % 1000 + 1)
    declared = declared_exceptions(program.tree)
    kept, why = [], Counter[str]()
    for given, outcome, other in zip(inputs, first, backwards[::-1], strict=True):
        reason = outcome.skip
        if reason is None and outcome != other:
            reason = other.skip or "differs between runs"
        elif reason is None and outcome.raises and not is_declared(outcome, declared):
            reason = f"raises {outcome.raises[1]}"
        if reason is None:
            kept.append(Case(given, outcome))
        else:
            why[reason] += 1
    return few_raising(kept), why


async def choose_types(
    lab: Lab, program: Program, parameters: Sequence[Parameter], known: Constants, seed: int
) -> list[tuple[str, ...]]:
    """The combinations of types that the reference takes: the one that there is, or the best of several."""
    rows = itertools.islice(itertools.product(*(range(len(each.types)) for each in parameters)), 400)
    combinations = [
        tuple(each.types[place] for each, place in zip(parameters, row, strict=True))
        for row in sorted(rows, key=sum)[:MAX_COMBINATIONS]
    ]
    if len(combinations) == 1:
        return combinations
    tried: list[tuple[int, str]] = []
    for place, types in enumerate(combinations):
        try:
            some = drawn_calls(parameters, types, known, 3 * TRIES, seed)
        except CantMake:
            continue
        tried += [(place, given) for given in some[-TRIES:]]
    outcomes = await lab.observe(program.source, program.name, [given for _, given in tried])
    declared = declared_exceptions(program.tree)
    scores = []
    for place, types in enumerate(combinations):
        mine = [each for each, (owner, _) in zip(outcomes, tried, strict=True) if owner == place]
        values = [each for each in mine if each.value is not None]
        announced = [each for each in mine if each.raises and is_declared(each, declared)]
        if values and len(values) + len(announced) >= 0.3 * len(mine):
            variety = len({(each.value, str(each.after)) for each in values})
            scores.append(((len(values) + variety) / len(mine) - 0.05 * place, types))
    if not scores:
        common = Counter(each.skip or f"raises {each.raises[1]}" for each in outcomes if each.value is None)
        raise Dropped(*reason_for(common.most_common(1)[0][0] if common else "no type for its arguments"))
    scores.sort(key=lambda pair: -pair[0])
    return [types for score, types in scores[:3] if score >= 0.7 * scores[0][0]]


def few_raising(cases: Sequence[Case]) -> list[Case]:
    """Calls that raise are a fifth at most: a solution that always raises is no half of one."""
    allowed = int(MAX_RAISING * sum(not case.wanted.raises for case in cases))
    kept = []
    for case in cases:
        if case.wanted.raises:
            allowed -= 1
        if not case.wanted.raises or allowed >= 0:
            kept.append(case)
    return kept


def reason_for(reason: str) -> tuple[str, str]:
    """A drop's reason, one of few, and its detail."""
    for start, general in (("gives a ", "gives no plain data"), ("raises ", "refuses the inputs")):
        if reason.startswith(start):
            return general, reason
    return f"the reference {reason}" if reason in ("takes too long", "ends the program") else reason, ""


def declared_exceptions(tree: ast.Module) -> set[str]:
    """The exceptions that a program raises by name, or that its docstrings announce."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name):
                found.add(raised.id)
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            found |= {
                word.strip(".,:;`")
                for word in text.split()
                if word.strip(".,:;`").endswith(("Error", "Exception"))
            }
    return found - {"Exception", "BaseException"}


def is_declared(outcome: Outcome, declared: set[str]) -> bool:
    return outcome.raises[0] is not None and bool(declared & set(outcome.raises))
