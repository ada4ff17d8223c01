"""All that a maker of tasks from functions reads before it begins."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lathe.errors import UserError
from lathe.synth.argument_types import Observed, calls_in
from lathe.synth.corpus import read_corpus
from lathe.synth.decontaminate import Benchmarks, benchmarks_of
from lathe.synth.extract import Candidate, Scope, candidates_of, scopes_of
from lathe.synth.foreign import ForeignCandidate, foreign_candidates
from lathe.synth.inputs import import_hypothesis
from lathe.synth.languages import LANGUAGES


@dataclass(frozen=True)
class Functions:
    """The candidates of a corpus, and what else is in it: other files' names, calls by the name called."""

    candidates: Sequence[Candidate | ForeignCandidate]
    scopes: Mapping[str, Scope]
    observed: Mapping[str, Sequence[Observed]]
    benchmarks: Benchmarks


def read_functions(
    sources: Sequence[str],
    *,
    language: str = "python",
    licence: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    benchmarks: Sequence[Path] = (),
    humaneval: bool = True,
) -> Functions:
    """Raises UserError for sources without functions, MissingExtra where packages are missing."""
    import_hypothesis()
    known = benchmarks_of(benchmarks, humaneval)
    candidates: list[Candidate | ForeignCandidate]
    files = [] if language in LANGUAGES else read_corpus(sources, licence)
    if language in LANGUAGES:
        candidates = [*foreign_candidates(sources, LANGUAGES[language], licence)]
    else:
        candidates = [*{each.id: each for each in candidates_of(files)}.values()]
    if not candidates:
        raise UserError(f"{', '.join(sources)}: no function at the top of any file.")
    if limit is not None and limit < len(candidates):
        chosen = {each.id for each in random.Random(seed).sample(candidates, limit)}
        candidates = [each for each in candidates if each.id in chosen]
    return Functions(candidates, scopes_of(files), calls_in(files), known)
