"""A real sandbox for each test."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from lathe.errors import InfrastructureError
from lathe.sandbox.pool import Pool, open_pool
from lathe.sandbox.spec import Bind, SandboxSpec
from lathe.types import Sandbox


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


@pytest.fixture
async def box(pool) -> AsyncIterator[Sandbox]:
    made = await pool.create()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> tuple[str, ...]:
    """What `lathe code` must be told about its sandbox: nothing, where this machine has one."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "here").touch()

    async def is_seen() -> bool:
        async with open_pool("namespace", num_shards=1) as pool:
            box = await pool.create(SandboxSpec(binds=(Bind(str(folder), str(folder)),)))
            return any(entry.path.endswith("here") for entry in await box.list(str(folder)))

    try:
        return () if asyncio.run(is_seen()) else ("--no-sandbox",)
    except (InfrastructureError, OSError):
        return ("--no-sandbox",)
