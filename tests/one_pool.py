"""A real pool for the tests of a module, in the rooms that stand on sandboxes."""

import functools
from collections.abc import AsyncIterator, Iterator

import pytest

from lathe.errors import InfrastructureError
from lathe.sandbox.pool import Pool, open_pool
from lathe.sandbox.probe import probe


@pytest.fixture(scope="session")
def probed() -> Iterator[None]:
    """What this machine can do is found out once: to try it takes longer than all else in opening a pool."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lathe.sandbox.pool.probe", functools.cache(probe))
        yield


@pytest.fixture(scope="module")
async def pool(probed) -> AsyncIterator[Pool]:
    """Skips, and says why, where the machine refuses namespaces. Its warm Python serves all of the tests."""
    try:
        context = open_pool("namespace", num_shards=1)
        made = await context.__aenter__()
    except InfrastructureError as error:
        pytest.skip(f"no namespaces here: {error}")
    try:
        yield made
    finally:
        await context.__aexit__(None, None, None)
