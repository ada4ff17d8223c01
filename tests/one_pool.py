"""A real pool for each test of a room that stands on sandboxes."""

from collections.abc import AsyncIterator

import pytest

from lathe.errors import InfrastructureError
from lathe.sandbox.pool import Pool, open_pool


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    """Skips, and says why, where the machine refuses namespaces."""
    try:
        context = open_pool("namespace", num_shards=1)
        made = await context.__aenter__()
    except InfrastructureError as error:
        pytest.skip(f"no namespaces here: {error}")
    try:
        yield made
    finally:
        await context.__aexit__(None, None, None)
