"""From a function of a corpus to tasks whose tests have numbers.

A candidate is made self-contained; its inputs are drawn, and validated by running it; faults are put into it,
and the tests chosen that tell it from them; then the gates are measured, the last ones by the judge itself.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lathe.sandbox.pool import Pool
from lathe.synth.argument_types import Observed
from lathe.synth.book import Drop, Made
from lathe.synth.cases import Dropped, find_cases
from lathe.synth.decontaminate import Benchmarks, contaminated
from lathe.synth.extract import Candidate, NotSelfContained, Program, Scope, extract
from lathe.synth.faults import mutations_of
from lathe.synth.gates import Gates, Thresholds, first_failure, with_gates
from lathe.synth.judged import Judged, difficulty_of
from lathe.synth.kinds import (
    KINDS,
    Kind,
    Measured,
    can_predict,
    complete_task,
    fix_task,
    holes_of,
    predict_task,
    write_task,
)
from lathe.synth.lab import Lab, open_lab
from lathe.synth.mutations import functions_of, mutate
from lathe.synth.proposals import describe, propose_inputs
from lathe.synth.rewrites import rewrites_of
from lathe.synth.suite import KILLED, Case, choose_cases
from lathe.types import Model, Task

NUM_EXAMPLES = 3
MAX_MUTANTS = 60
PREDICT_MIN_MUTATION = 0.2  # one value can't tell all faults


@dataclass(frozen=True)
class FunctionsConfig:
    """How tasks are made from functions. The defaults are those of `lathe make functions`.

    `num_inputs` are drawn to choose tests from, and as many again to see which mutants differ at all.
    `max_tests` is the most that a task has. `num_gold` is how often the reference is judged.
    """

    kinds: tuple[Kind, ...] = KINDS
    seed: int = 0
    num_inputs: int = 80
    max_tests: int = 24
    num_gold: int = 3
    num_attempts: int = 4
    asked: Thresholds = field(default_factory=Thresholds)


@dataclass(frozen=True)
class FunctionMaker:
    """Makes a candidate's tasks by `make`, which raises SandboxError where the machine fails."""

    pool: Pool
    scopes: Mapping[str, Scope]
    observed: Mapping[str, Sequence[Observed]]
    config: FunctionsConfig = field(default_factory=FunctionsConfig)
    benchmarks: Benchmarks = field(default_factory=Benchmarks)
    model: Model | None = None

    async def make(self, candidate: Candidate) -> Made:
        try:
            program = extract(candidate, self.scopes)
            seed = zlib.crc32(f"{self.config.seed} {candidate.id}".encode())
            work = Work(program, seed, self)
            async with open_lab(self.pool) as lab:
                observed = self.observed.get(candidate.node.name, ())
                count = 2 * self.config.num_inputs
                more = [] if self.model is None else await propose_inputs(self.model, program)
                work.take(await find_cases(lab, program, observed, count, seed, more))
                await work.choose_tests(lab)
                made = await work.build(lab)
            return await work.judge(made)
        except (NotSelfContained, Dropped) as error:
            return Made(candidate.id, drops=(error.drop,))


class Work:
    """One candidate on its way."""

    def __init__(self, program: Program, seed: int, maker: FunctionMaker):
        self.program = program
        self.seed = seed
        self.maker = maker
        self.config = maker.config
        self.cases: list[Case] = []
        self.fresh: list[Case] = []
        self.tests: list[Case] = []
        self.examples: list[Case] = []
        self.gates = Gates()
        self.predicted = Gates()
        self.faults: list[tuple[str, str]] = []  # of the mutants that the tests reject: program, letters

    # Tests

    def take(self, cases: Sequence[Case]) -> None:
        """Half of the cases are to choose tests from, half show which mutants differ at all."""
        self.cases, self.fresh = list(cases[: len(cases) // 2]), list(cases[len(cases) // 2 :])

    async def choose_tests(self, lab: Lab) -> None:
        """The tests that tell the reference from half of its mutants; all the numbers that need no judge."""
        name, rng = self.program.name, random.Random(self.seed)
        mutants = mutants_of(self.program)
        if len(mutants) > MAX_MUTANTS:
            mutants = rng.sample(mutants, MAX_MUTANTS)
        if len(mutants) < 4:
            raise Dropped("too little to get wrong", f"{len(mutants)} mutants")
        rng.shuffle(mutants)
        inputs, wanted = [each.given for each in self.cases], [each.wanted for each in self.cases]
        letters = await lab.compare(mutants, name, inputs, wanted)
        half = len(mutants) // 2
        chosen = choose_cases(self.cases, letters[:half], max_cases=self.config.max_tests)
        self.tests = [self.cases[place] for place in chosen]
        rows = ["".join(row[place] for place in chosen) for row in letters]
        rejected = [any(letter in KILLED for letter in row) for row in rows]
        self.faults = [
            (mutant, row) for mutant, row, killed in zip(mutants, rows, rejected, strict=True) if killed
        ]
        self.examples = self._examples(chosen, letters)
        wrong = await self._wrong(lab, mutants[half:], letters[half:])
        held_out = [killed for killed, is_wrong in zip(rejected[half:], wrong, strict=True) if is_wrong]
        variants = list(rewrites_of(self.program.tree, name).values())
        accepted = await lab.compare(
            variants, name, [each.given for each in self.tests], [each.wanted for each in self.tests]
        )
        self.gates = Gates(
            num_tests=len(self.tests),
            mutation=share(sum(rejected), len(mutants)),
            num_mutants=len(mutants),
            tpr=share(sum(set(row) == {"1"} for row in accepted), len(variants)),
            num_right=len(variants),
            tnr=share(sum(held_out), len(held_out)),
            num_wrong=len(held_out),
        )
        if reason := first_failure(self.gates, self.config.asked):
            raise Dropped(reason, numbers(self.gates))

    async def _wrong(self, lab: Lab, mutants: Sequence[str], letters: Sequence[str]) -> list[bool]:
        """Which of them differ from the reference, seen on the inputs to choose from or on fresh ones."""
        wrong = [any(letter in KILLED for letter in row) for row in letters]
        quiet = [place for place, each in enumerate(wrong) if not each]
        inputs, wanted = [each.given for each in self.fresh], [each.wanted for each in self.fresh]
        rows = await lab.compare(
            [mutants[place] for place in quiet], self.program.name, inputs, wanted, first_only=True
        )
        for place, row in zip(quiet, rows, strict=True):
            wrong[place] = any(letter in KILLED for letter in row)
        return wrong

    def _examples(self, chosen: Sequence[int], letters: Sequence[str]) -> list[Case]:
        """The most telling of the other calls, to be shown. One that raises, if a test does."""
        rest = [place for place in range(len(self.cases)) if place not in chosen]
        others = [self.cases[place] for place in rest if not self.cases[place].wanted.raises]
        rows = [
            "".join(row[place] for place in rest if not self.cases[place].wanted.raises) for row in letters
        ]
        told = choose_cases(others, rows, cover=1, min_cases=NUM_EXAMPLES, max_cases=NUM_EXAMPLES)
        found = [others[place] for place in told]
        if any(case.wanted.raises for case in self.tests):
            found += [self.cases[place] for place in rest if self.cases[place].wanted.raises][:1]
        return found

    # Tasks

    async def build(self, lab: Lab) -> tuple[Measured, dict[Kind, Task], list[Drop]]:
        """The tasks of each kind that the function allows, and why not the others."""
        measured = Measured(self.program, self.tests, self.examples, await self._description())
        tasks: dict[Kind, Task] = {}
        drops: list[Drop] = []
        for kind in self.config.kinds:
            task, reason = await getattr(self, f"_{kind}")(lab, measured)
            if task is not None:
                if (known := contaminated(task, self.maker.benchmarks, [self.program.source])) is not None:
                    drops.append(Drop("overlaps with a benchmark", known, kind))
                else:
                    tasks[kind] = task
            else:
                drops.append(Drop(reason, kind=kind))
        return measured, tasks, drops

    async def _description(self) -> str | None:
        if self.program.docstring is None and self.maker.model is not None:
            return await describe(self.maker.model, self.program)
        return self.program.docstring

    async def _write(self, lab: Lab, measured: Measured) -> tuple[Task | None, str]:
        return write_task(measured), "nobody says what it does"

    async def _fix(self, lab: Lab, measured: Measured) -> tuple[Task | None, str]:
        """The fault that the fewest tests see: the subtlest."""
        by_tests = sorted(self.faults, key=lambda pair: sum(letter in KILLED for letter in pair[1]))
        by_tests = [pair for pair in by_tests if "t" not in pair[1]] or by_tests
        if not by_tests:
            return None, "no fault is seen"
        faulty, _ = by_tests[0]
        shown = [case for case in [*self.cases, *self.fresh] if case not in self.tests]
        (row,) = await lab.compare(
            [faulty], self.program.name, [each.given for each in shown], [each.wanted for each in shown]
        )
        spoiled = [case for case, letter in zip(shown, row, strict=True) if letter in KILLED]
        return fix_task(measured, faulty, min(spoiled, key=lambda case: case.cost, default=None)), ""

    async def _complete(self, lab: Lab, measured: Measured) -> tuple[Task | None, str]:
        holes = holes_of(self.program, self.seed)
        letters = await lab.compare(
            [with_pass for _, _, with_pass in holes], self.program.name,
            [each.given for each in self.tests], [each.wanted for each in self.tests],
        )  # fmt: skip
        for (before, after, _), row in zip(holes, letters, strict=True):
            if row and set(row) != {"1"}:
                return complete_task(measured, before, after), ""
        return None, "no hole that matters"

    async def _predict(self, lab: Lab, measured: Measured) -> tuple[Task | None, str]:
        """The test that the most mutants get wrong, and whose value is no usual one."""
        usual = Counter(case.wanted.value for case in self.cases).most_common(1)[0][0]
        places = [
            place for place, case in enumerate(self.tests)
            if can_predict(case) and case.wanted.value not in (usual, "None", "True", "False")
        ]  # fmt: skip
        if not places:
            return None, "no value worth a prediction"

        def killed(place: int) -> int:
            return sum(row[place] in KILLED for _, row in self.faults)

        best = max(places, key=killed)
        wrong = share(killed(best), self.gates.num_mutants)
        self.predicted = Gates(num_tests=1, mutation=wrong, num_mutants=self.gates.num_mutants)
        return predict_task(measured, self.tests[best]), ""

    # Gates that ask the judge

    async def judge(self, made: tuple[Measured, dict[Kind, Task], list[Drop]]) -> Made:
        measured, tasks, drops = made
        candidate = self.program.candidate.id
        kept: list[Task] = []
        judged = Judged(self.maker.pool, self.config.num_gold)
        whole: Gates | None = None
        for kind, task in tasks.items():
            if kind == "predict":
                gates = await judged.prediction(task, self.predicted)
                asked = replace(self.config.asked, min_tests=1, min_mutation=PREDICT_MIN_MUTATION)
            else:
                if whole is None:  # the tests and the solution of all kinds of code are the same
                    whole = await judged.code(
                        task, self.gates, measured, rewrites_of(self.program.tree, measured.name)
                    )
                gates = replace(whole, noop=await judged.reward(task, {}))
                asked = self.config.asked
            reason = first_failure(gates, asked)
            if reason is None and self.maker.model is not None:
                gates = await difficulty_of(
                    task, gates, self.maker.model, self.maker.pool, self.config.num_attempts
                )
            if reason is None:
                kept.append(with_gates(task, gates))
            else:
                drops.append(Drop(reason, numbers(gates), kind))
        return Made(candidate, tuple(kept), tuple(drops))


def share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def numbers(gates: Gates) -> str:
    """Those that were measured, in one line."""
    return ", ".join(f"{name} {value:g}" for name, value in vars(gates).items() if value is not None)


def mutants_of(program: Program) -> list[str]:
    """The program with one fault in it, for all that are known for its function and its helpers."""
    found: dict[str, None] = {}
    for function in functions_of(program.source):
        for mutation in mutations_of(program.source, function):
            try:
                found[mutate(program.source, mutation)] = None
            except ValueError:
                continue
    return list(found)
