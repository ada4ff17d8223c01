"""Faults tried by the dozen in one sandbox, with the tests that reach them: far cheaper than a judge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lathe.synth.repository.bugs import Bug, slips_in
from lathe.synth.repository.suite import Suite, Trial, try_faults
from lathe.synth.repository.workshop import Workshop

CHUNK = 12
SIEVE_S = 5.0  # no more tests of one fault than took so long before


class Sieve:
    """Tries faults by the dozen in one sandbox, when the first of a dozen is asked for."""

    def __init__(self, shop: Workshop, bugs: Sequence[Bug]):
        self._shop = shop
        self._chunks = [bugs[place : place + CHUNK] for place in range(0, len(bugs), CHUNK)]
        self._place = {bug.id: place for place, chunk in enumerate(self._chunks) for bug in chunk}
        self._running: dict[int, asyncio.Task[dict[str, Trial]]] = {}

    async def trial(self, bug: Bug) -> Trial:
        """What became of the tests that reach the fault."""
        place = self._place.get(bug.id)
        if place is None:
            return (await tried(self._shop, [bug]))[bug.id]
        if place not in self._running:
            self._running[place] = asyncio.create_task(tried(self._shop, self._chunks[place]))
        return (await self._running[place])[bug.id]


async def tried(shop: Workshop, bugs: Sequence[Bug]) -> dict[str, Trial]:
    faults = {bug.id: (bug.files, tests_of(shop.suite, bug)) for bug in bugs}
    return await try_faults(shop.repository, shop.suite, faults, shop.pool)


def tests_of(suite: Suite, bug: Bug) -> list[str]:
    """The tests that reach a fault, quick ones first, as many as the sieve has time for."""
    reaching = {test for place in bug.places for test in suite.reaching.get(place, ())}
    chosen: list[str] = []
    seconds = 0.0
    for test in sorted(reaching, key=lambda test: (suite.seconds.get(test, 0.0), test)):
        seconds += suite.seconds.get(test, 0.0)
        if chosen and seconds > SIEVE_S:
            break
        chosen.append(test)
    return chosen


async def mutation_score(shop: Workshop, bug: Bug) -> list[bool]:
    """For other slips in the functions of a fault, whether a test that reaches them notices."""
    others = [each for each in slips_in(shop.repository, bug.places, shop.config.seed) if each.id != bug.id]
    trials = await tried(shop, others[: shop.config.num_mutants])
    return [bool(trial.failed or trial.broken or trial.timed_out) for trial in trials.values()]
