"""A real sandbox for each test."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from one_pool import pool, probed

from lathe.errors import InfrastructureError
from lathe.sandbox.pool import open_pool
from lathe.types import Sandbox

__all__ = ["pool", "probed"]


@pytest.fixture
async def box(pool) -> AsyncIterator[Sandbox]:
    made = await pool.create()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def place() -> tuple[str, ...]:
    """What `lathe code` must be told about its sandbox: nothing, where this machine has one."""

    async def try_one() -> None:
        async with open_pool("namespace", num_shards=1) as pool:
            await pool.create()

    try:
        asyncio.run(try_one())
    except InfrastructureError:
        return ("--no-sandbox",)
    return ()
