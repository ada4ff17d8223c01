"""Functions of other languages: tasks judged by what a program writes for what it reads."""

from __future__ import annotations

import ast
import itertools
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lathe.errors import InfrastructureError, SandboxError, UserError
from lathe.sandbox.pool import Pool
from lathe.sandbox.spec import SandboxSpec
from lathe.synth.argument_types import Parameter
from lathe.synth.book import Drop, Made
from lathe.synth.cases import Dropped
from lathe.synth.corpus import Origin, folder_origin
from lathe.synth.decontaminate import Benchmarks, contaminated
from lathe.synth.functions import FunctionsConfig, numbers, share
from lathe.synth.gates import Gates, first_failure, with_gates
from lathe.synth.inputs import Constants, drawn_calls
from lathe.synth.judged import Judged
from lathe.synth.kinds import LIMITS, MIN_WORDS, TIMEOUT_S
from lathe.synth.lab import Outcome
from lathe.synth.languages import Language, slips_of
from lathe.synth.suite import Case, choose_cases
from lathe.types import HiddenTests, Sandbox, Task

TYPES = ("str", "int", "list[int]", "list[str]")
DOCUMENTED = {
    "string": ("str",), "number": ("int", "float"), "boolean": ("bool",), "array": ("list[int]", "list[str]"),
}  # fmt: skip
USES = (
    (r"\bNAME\.(?:push|map|filter|forEach|join|reduce|some|every|sort|pop)\b|@\{?NAME", TYPES[2:]),
    (r"\bNAME\.(?:toLowerCase|toUpperCase|replace|split|charCodeAt|charAt|trim\w*|startsWith|endsWith|"
     r"substr\w*|match\w*|codePointAt|padStart|padEnd|normalize)\b|NAME =~", ("str",)),
    (r"\bMath\.\w+\(NAME\b|\bNAME [*/%<>&|-] |[*/%&|] NAME\b|NAME >>", ("int", "float")),
)  # fmt: skip
MAX_LINES, MAX_ARGUMENTS, MAX_SLIPS = 60, 3, 40
RUN_S = 10.0
READ_ANSWER = "import json; print(json.dumps(json.loads(open('answer.txt').read(100_000))))"
NOTHING = ("error", "nothing", "null", "[]", '""')


@dataclass(frozen=True)
class ForeignCandidate:
    """A function's text, the comment above it, and where it stands."""

    language: Language
    name: str
    source: str
    arguments: tuple[str, ...]
    comment: str
    where: str
    line: int
    origin: Origin

    @property
    def id(self) -> str:
        return f"{self.origin.name}/{self.where}:{self.name}"


def foreign_candidates(
    sources: Sequence[str], language: Language, licence: str | None = None
) -> list[ForeignCandidate]:
    """The functions in files and folders. Raises UserError for a source that is neither, or has none."""
    found: dict[str, ForeignCandidate] = {}
    for source in sources:
        path = Path(source)
        if not path.exists():
            raise UserError(f"{source} is no file and no folder: {language.name} is read from those alone.")
        root = path.parent if path.is_file() else path
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        for file in files:
            if file.suffix in language.suffixes and file.stat().st_size < 1 << 20:
                text = file.read_text("utf-8", "replace")
                where = file.relative_to(root).as_posix()
                for each in functions_in(text, language, where, folder_origin(path, licence)):
                    found.setdefault(each.id, each)
    if not found:
        raise UserError(
            f"{', '.join(sources)}: no function of {language.name} that begins in the first column."
        )
    return list(found.values())


def functions_in(text: str, language: Language, where: str, origin: Origin) -> Iterator[ForeignCandidate]:
    lines = text.splitlines()
    for place, line in enumerate(lines):
        head = language.head.match(line)
        end = next((each for each in range(place, len(lines)) if lines[each].rstrip(";") == "}"), None)
        if head is None or end is None or end - place > MAX_LINES:
            continue
        body = "\n".join(lines[place : end + 1]).removeprefix("export ") + "\n"
        start = place
        while start > 0 and language.comment.match(lines[start - 1]):
            start -= 1
        comment = "\n".join(language.comment.sub("", each) for each in lines[start:place]).strip()
        names = tuple(arguments_of(head.groupdict().get("parameters"), body))
        yield ForeignCandidate(language, head["name"], body, names, comment, where, place + 1, origin)


def arguments_of(parameters: str | None, body: str) -> list[str]:
    """The names of the arguments: by the head; in Perl by what is taken from @_."""
    if parameters is not None:
        return [each.strip() for each in parameters.split(",") if each.strip() and "=" not in each]
    taken = re.search(r"my\s*\(([^)]*)\)\s*=\s*@_", body)
    if taken:
        return [each.strip() for each in taken[1].split(",") if each.strip()]
    return re.findall(r"(\$\w+)\s*=\s*shift\b", body) or ["$_[0]"] * ("$_[0]" in body)


def types_of_use(name: str, candidate: ForeignCandidate) -> tuple[str, ...]:
    """By the comment (`@param {string} name`), by what is done with the argument, or all."""
    said = re.search(r"@param \{(\w+)[^}]*\} \[?" + re.escape(name) + r"\b", candidate.comment)
    if said and said[1].lower() in DOCUMENTED:
        return DOCUMENTED[said[1].lower()]
    for pattern, types in USES:
        if re.search(pattern.replace("NAME", re.escape(name)), candidate.source):
            return types
    return TYPES


@dataclass(frozen=True)
class ForeignMaker:
    """As `FunctionMaker`, by processes: a mutant is a file that the language's program runs on all inputs."""

    pool: Pool
    config: FunctionsConfig = field(default_factory=FunctionsConfig)
    benchmarks: Benchmarks = field(default_factory=Benchmarks)

    async def make(self, candidate: ForeignCandidate) -> Made:
        box: Sandbox | None = None
        try:
            check(candidate)
            box = await self.pool.create(SandboxSpec(limits=LIMITS))
            cases = await find_cases(box, candidate, self.config)
            tests, shown, gates, faulty = await measure(box, candidate, cases, self.config)
            return await self.judge(candidate, tests, shown, gates, faulty)
        except Dropped as error:
            return Made(candidate.id, drops=(error.drop,))
        finally:
            if box is not None:
                with suppress(SandboxError):
                    await box.close()

    async def judge(
        self, candidate: ForeignCandidate, tests: list[Case], shown: list[Case], gates: Gates, faulty: str
    ) -> Made:
        judged = Judged(self.pool, self.config.num_gold)
        language, file = candidate.language, candidate.language.file
        kept: list[Task] = []
        drops: list[Drop] = []
        code: Gates | None = None
        for kind, task in tasks_of(candidate, tests, shown, faulty):
            if kind not in self.config.kinds:
                continue
            if task is None:
                drops.append(Drop("nobody says what it does", kind=kind))
                continue
            if (known := contaminated(task, self.benchmarks, [candidate.source])) is not None:
                drops.append(Drop("overlaps with a benchmark", known, kind))
                continue
            if kind == "predict":
                measured = await judged.prediction(task, Gates(num_tests=1))
                asked = replace(self.config.asked, min_tests=1)
            else:
                if code is None:
                    stubs = {each: each.replace("{name}", candidate.name) for each in language.stubs}
                    flake = await judged.flake(task)
                    code = replace(gates, num_gold=self.config.num_gold, flake=flake,
                                   stub=await judged.best(task, stubs, file))  # fmt: skip
                measured = replace(code, noop=await judged.reward(task, {}))
                asked = self.config.asked
            reason = first_failure(measured, asked)
            if reason is None:
                kept.append(with_gates(task, measured))
            else:
                drops.append(Drop(reason, numbers(measured), kind))
        return Made(candidate.id, tuple(kept), tuple(drops))


def check(candidate: ForeignCandidate) -> None:
    code = candidate.language.strings.sub("", candidate.source)
    if used := candidate.language.forbidden.search(code):
        raise Dropped("depends on more than its arguments", f"uses {used[0]}")
    if not candidate.arguments:
        raise Dropped("takes no argument")
    if len(candidate.arguments) > MAX_ARGUMENTS:
        raise Dropped("takes too many arguments", str(len(candidate.arguments)))
    if candidate.source.count("\n") < 4:
        raise Dropped("too little to get wrong")


async def run(box: Sandbox, candidate: ForeignCandidate, source: str, inputs: Sequence[str]) -> list[str]:
    """A line for each input; fewer where the program ended. Raises InfrastructureError for no runtime."""
    await box.write(candidate.language.file, source)
    done = await box.exec(
        list(candidate.language.command(candidate.name)), stdin="\n".join(inputs) + "\n", timeout_s=RUN_S
    )
    if done.exit_code == 127:
        raise InfrastructureError(
            f"{candidate.language.start[0]} can't be run in a sandbox: {done.stderr[-200:]}"
        )
    return [] if done.timed_out else done.stdout.splitlines()


async def find_cases(box: Sandbox, candidate: ForeignCandidate, config: FunctionsConfig) -> list[Case]:
    """Inputs by the types that the function takes best, kept where two runs give the same plain value."""
    seed = zlib.crc32(f"{config.seed} {candidate.id}".encode())
    texts = {text[1:-1] for text in re.findall(r"'[^'\n\\]{1,20}'|\"[^\"\n\\]{1,20}\"", candidate.source)}
    ints = {int(each) + near for each in re.findall(r"\b\d{1,4}\b", candidate.source) for near in (-1, 0, 1)}
    known = Constants(tuple(sorted(ints)), (), tuple(sorted(texts)))
    rows = [Parameter(name, types_of_use(name, candidate), True) for name in candidate.arguments]
    combinations = list(itertools.product(*(each.types for each in rows)))[:16]
    tried = [
        (types, given) for types in combinations for given in drawn_calls(rows, types, known, 16, seed)[-6:]
    ]
    lines = await run(box, candidate, candidate.source, [as_json(given) for _, given in tried])
    scores: Counter[tuple[str, ...]] = Counter()
    for (types, _), line in zip(tried, lines, strict=False):
        scores[types] += line not in NOTHING
    if len(lines) < len(tried) or not scores or scores.most_common(1)[0][1] < 2:
        raise Dropped("refuses the inputs" if len(lines) == len(tried) else "can't stand alone")
    best = scores.most_common(1)[0][1]
    drawn: list[str] = []
    for types in [types for types, score in scores.most_common(2) if score >= 0.7 * best]:
        drawn += drawn_calls(rows, types, known, 2 * config.num_inputs, seed)
    random.Random(seed).shuffle(drawn)
    inputs = list(dict.fromkeys(map(as_json, drawn)))[: 2 * config.num_inputs]
    first = await run(box, candidate, candidate.source, inputs)
    again = await run(box, candidate, candidate.source, inputs[::-1])
    if len(first) != len(inputs) or first != again[::-1]:
        raise Dropped("not deterministic")
    cases = [
        Case(given, Outcome(value=line))
        for given, line in zip(inputs, first, strict=True)
        if line not in ("error", "nothing") and len(line) < 500
    ]
    usual = Counter(case.wanted.value for case in cases).most_common(1)
    if len(cases) < 10 or usual[0][1] > 0.95 * len(cases):
        raise Dropped("gives nearly always the same" if len(cases) >= 10 else "refuses the inputs")
    return cases


def as_json(given: str) -> str:
    """A call's arguments as one line of JSON."""
    args, _ = ast.literal_eval(given)
    return json.dumps(args)


async def measure(
    box: Sandbox, candidate: ForeignCandidate, cases: list[Case], config: FunctionsConfig
) -> tuple[list[Case], list[Case], Gates, str]:
    """The tests, the examples, their numbers, and the mutant that the fewest tests see."""
    mutants = slips_of(candidate.source, candidate.language)
    rng = random.Random(len(cases))
    mutants = rng.sample(mutants, min(len(mutants), MAX_SLIPS))
    if len(mutants) < 4:
        raise Dropped("too little to get wrong", f"{len(mutants)} mutants")
    letters = []
    for mutant in mutants:
        lines = await run(box, candidate, mutant, [case.given for case in cases])
        lines += ["gone"] * (len(cases) - len(lines))
        letters.append(
            "".join("01"[line == case.wanted.value] for line, case in zip(lines, cases, strict=False))
        )
    own = len(cases) // 2
    half = len(mutants) // 2
    chosen = choose_cases(cases[:own], [row[:own] for row in letters[:half]], max_cases=config.max_tests)
    rejected = ["0" in [row[place] for place in chosen] for row in letters]
    held_out = [killed for killed, row in zip(rejected[half:], letters[half:], strict=True) if "0" in row]
    gates = Gates(
        num_tests=len(chosen), mutation=share(sum(rejected), len(mutants)), num_mutants=len(mutants),
        tnr=share(sum(held_out), len(held_out)), num_wrong=len(held_out),
    )  # fmt: skip
    if reason := first_failure(gates, config.asked):
        raise Dropped(reason, numbers(gates))
    killed_by = [(sum(row[place] == "0" for place in chosen), mutant)
                 for row, mutant in zip(letters, mutants, strict=True)]  # fmt: skip
    faulty = min((pair for pair in killed_by if pair[0]), key=lambda pair: pair[0])[1]
    shown = [case for place, case in enumerate(cases) if place not in chosen][:3]
    return [cases[place] for place in chosen], shown, gates, faulty


def tasks_of(
    candidate: ForeignCandidate, tests: list[Case], shown: list[Case], faulty: str
) -> Iterator[tuple[str, Task | None]]:
    """By kind; None where nobody says what the function does."""
    language, name, file = candidate.language, candidate.name, candidate.language.file
    examples = "\n".join(f"{case.given} -> {case.wanted.value}" for case in shown)
    contract = f"Its arguments are given, and its value is taken, as JSON:\n\n```\n{examples}\n```\n\n"
    words = f"What it does:\n\n{candidate.comment}\n\n" if candidate.comment else ""
    cases = tuple((case.given + "\n", str(case.wanted.value)) for case in tests)
    judged = HiddenTests(language.command(name), "stdio", cases=cases, timeout_s=TIMEOUT_S)
    reference = {file: candidate.source}
    text = f"Write the {language.name} function `{name}` in `{file}`. {words}{contract}"
    is_said = len(candidate.comment.split()) >= MIN_WORDS
    yield "write", task_of(candidate, "write", text, judged, {}, reference, file) if is_said else None
    text = (
        f"The {language.name} function `{name}` in `{file}` has a fault:\n\n"
        f"```{language.name}\n{faulty}```\n\n"
        f"{words}{contract}Find the fault and correct it: give the whole of `{file}`."
    )
    yield "fix", task_of(candidate, "fix", text, judged, {file: faulty}, reference, file)
    case = max(tests, key=worth)
    text = (
        f"What does the {language.name} function `{name}` give for the arguments `{case.given}`?\n\n"
        f"```{language.name}\n{candidate.source}```\n\n"
        "Write the value as JSON into `answer.txt`, and nothing else."
    )
    wanted = json.dumps(json.loads(str(case.wanted.value)))
    read = HiddenTests(
        ("python3", "-I", "-B", "-c", READ_ANSWER), "stdio", cases=(("", wanted),), timeout_s=TIMEOUT_S
    )
    answer = {"answer.txt": wanted + "\n"}
    yield "predict", task_of(candidate, "predict", text, read, {}, answer, "answer.txt")


def worth(case: Case) -> tuple[bool, bool]:
    """A value that nobody guesses is worth more, and one that can be read."""
    value = str(case.wanted.value)
    return value not in (*NOTHING, "true", "false", "0", "1"), len(value) < 80


def task_of(
    candidate: ForeignCandidate, kind: str, prompt: str, tests: HiddenTests, files: dict[str, str],
    reference: dict[str, str], answer_file: str,
) -> Task:  # fmt: skip
    origin = candidate.origin
    return Task(
        id=f"{candidate.id}:{kind}",
        prompt=prompt,
        tests=tests,
        files=files,
        limits=LIMITS,
        language=candidate.language.name,
        source=origin.place(candidate.where, candidate.line),
        licence=origin.licence,
        info={"kind": kind, "answer_file": answer_file, "reference": reference, "importable": False},
    )
