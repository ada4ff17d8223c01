"""A fleet's machines as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lathe.sandbox.fleet.fleet import Node


def fleet_table(nodes: Sequence[Node]) -> Table:
    """One row a machine: what it is, what it does, what it holds."""
    table = Table(box=None, header_style="bold")
    for name in ("machine", "backend"):
        table.add_column(name)
    for name in ("cores", "load", "free memory", "sandboxes", "images"):
        table.add_column(name, justify="right")
    for node in nodes:
        stats = node.stats
        table.add_row(
            stats.host,
            stats.backend,
            str(stats.num_cpus),
            f"{stats.load:.1f}",
            f"{stats.free_bytes / 2**30:.0f} GiB",
            str(stats.num_boxes),
            str(len(stats.images)),
        )
    return table
