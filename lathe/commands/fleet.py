"""`lathe fleet`: a cluster's machines."""

from __future__ import annotations

from typing import Annotated

import typer

from lathe.commands.opening import stderr, stdout


def fleet(
    address: Annotated[str, typer.Argument(help="The Ray cluster: HOST:PORT, or auto.")] = "auto",
) -> None:
    """Show the machines of a Ray cluster that can hold sandboxes, for `lathe attempt --fleet`."""
    import asyncio

    from lathe.sandbox.fleet.fleet import open_fleet
    from lathe.terminal.fleet import fleet_table

    async def look() -> None:
        with stderr().status("Opening a pool on each machine …"):
            async with open_fleet(address) as opened:
                table = fleet_table(opened.nodes)
        stdout().print(table)

    asyncio.run(look())
