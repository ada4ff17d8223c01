"""A pool for each test, and the check that after each test nothing of it is left."""

from collections.abc import AsyncIterator, Iterator

import pytest
from one_pool import probed
from sandbox_traces import new_traces, traces

from lathe.errors import InfrastructureError
from lathe.sandbox.pool import Pool, open_pool

__all__ = ["probed"]


@pytest.fixture(scope="module")
async def loop() -> None:
    """The module's event loop, whose descriptors are there before a test's are counted."""


@pytest.fixture
def nothing_left(loop) -> Iterator[None]:
    """Fails the test when a process, mount, cgroup, descriptor or folder of it outlives it."""
    before = traces()
    yield
    assert not new_traces(before)


@pytest.fixture
async def pool(probed, nothing_left) -> AsyncIterator[Pool]:
    """A pool of the namespace backend. Skips, and says why, where the machine refuses namespaces."""
    try:
        context = open_pool("namespace")
        made = await context.__aenter__()
    except InfrastructureError as error:
        pytest.skip(f"no namespaces here: {error}")
    try:
        yield made
    finally:
        await context.__aexit__(None, None, None)
