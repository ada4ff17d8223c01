"""From what a judge wrote to what became of each test."""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lathe.tasks.controls import tests_of


@dataclass(frozen=True)
class Report:
    """For each test that was seen to run: True when it passed. `texts` say why others failed.

    `suspects` are signs of cheating. `log` is for people. `timed_out`: tests that are missing had no time.
    """

    passed: Mapping[str, bool] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    suspects: tuple[str, ...] = ()
    log: str = ""
    timed_out: bool = False


def read_signed_records(output: str, key: bytes) -> tuple[dict[str, bool], dict[str, str], list[str]]:
    """The outcomes, texts and suspicions in a pytest judge's records. What isn't signed is a suspicion
    itself; so is a record that is missing between others."""
    passed: dict[str, bool] = {}
    texts: dict[str, str] = {}
    suspects: list[str] = []
    number = 0
    for line in output.splitlines():
        signature, _, body = line.partition(" ")
        expected = hmac.new(key, body.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            suspects.append("something else wrote to the report")
            continue
        record = json.loads(body)
        if record["kind"] == "suspect" and record["n"] == 0:  # of a fork of the judge's process
            suspects.append(record["what"])
            continue
        number += 1
        if record["n"] != number:
            suspects.append("records are missing or repeated")
            number = record["n"]
        match record["kind"]:
            case "outcome":
                name = record["name"]
                passed[name] = record["outcome"] == "passed" and passed.get(name, True)
                if record["text"]:
                    texts[name] = record["text"]
            case "collect":
                texts[record["name"]] = record["text"]
            case "suspect":
                suspects.append(record["what"])
    return passed, texts, list(dict.fromkeys(suspects))


def names_of_tests(path: str, text: str) -> list[str]:
    """The names, as pytest writes them, of the tests in a file; those with parameters without these."""
    return [f"{path}::{name}" for name, _ in tests_of(ast.parse(text, path))]


def score(report: Report, needed: Iterable[str]) -> dict[str, str]:
    """Each needed test as "passed", "failed" or "missing". A name stands for all of its parameters' tests."""
    outcomes = {}
    for name in needed:
        own = outcomes_of(report, name)
        outcomes[name] = "missing" if not own else "passed" if all(own) else "failed"
    return outcomes


def outcomes_of(report: Report, name: str) -> list[bool]:
    """Whether the test passed, for each of its parameters that was seen to run."""
    return [ok for ran, ok in report.passed.items() if ran == name or ran.startswith(name + "[")]
