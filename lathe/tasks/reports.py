"""From what a judge wrote to what became of each test."""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


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
    names = []
    for node in ast.parse(text, path).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
            names.append(f"{path}::{node.name}")
        elif isinstance(node, ast.ClassDef) and (
            node.name.startswith("Test") or any("TestCase" in ast.unparse(base) for base in node.bases)
        ):
            methods = [
                each for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))
            ]
            names += [f"{path}::{node.name}::{each.name}" for each in methods if each.name.startswith("test")]
    return names


def score(report: Report, needed: Iterable[str]) -> dict[str, str]:
    """Each needed test as "passed", "failed" or "missing". A name stands for all of its parameters' tests."""
    outcomes = {}
    for name in needed:
        own = [ok for ran, ok in report.passed.items() if ran == name or ran.startswith(name + "[")]
        outcomes[name] = "missing" if not own else "passed" if all(own) else "failed"
    return outcomes
