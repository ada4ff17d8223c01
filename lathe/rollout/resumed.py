"""Telling what an agent changed in a sandbox that was made from a frozen one."""

from __future__ import annotations

from lathe.errors import InfrastructureError
from lathe.tasks.patch import LISTING_TIMEOUT_S, Listing, take_listing
from lathe.types import Sandbox


async def listing_of_resumed(box: Sandbox, clean: Sandbox) -> Listing:
    """A listing of `box` as it would have been taken before the agent came, whose place `clean` shows.

    Freezing copies files, and a copy has a change time of its own: files that hold the same in both are taken
    to be unchanged.
    """
    here, there = await take_listing(box), await take_listing(clean)
    alike = [
        path
        for path, (kind, _, size, mode) in there.entries.items()
        if path in here.entries
        and here.entries[path] != there.entries[path]
        and (kind, size, mode) == (here.entries[path][0], *here.entries[path][2:])
        and kind in "fl"
    ]
    ours, theirs = await digests(box, alike), await digests(clean, alike)
    same = {path: here.entries[path] for path in alike if path in ours and ours[path] == theirs.get(path)}
    return Listing({**there.entries, **same})


async def digests(box: Sandbox, paths: list[str]) -> dict[str, str]:
    """What regular files hold and links say, as a digest of each. What can't be read is not among them."""
    if not paths:
        return {}
    program = 'for each; do if [ -L "$each" ]; then readlink -n -- "$each" | sha256sum -z; '
    program += 'else sha256sum -z < "$each"; fi 2>/dev/null || printf "?\\0"; done'
    result = await box.exec(
        ["xargs", "-0", "sh", "-c", program, "sh"],
        stdin="\0".join(paths) + "\0",
        timeout_s=LISTING_TIMEOUT_S,
        max_output_bytes=64 << 20,
    )
    found = result.stdout.split("\0")[:-1]
    if result.timed_out or result.truncated or len(found) != len(paths):
        raise InfrastructureError(f"files can't be compared: {result.stderr[-500:] or result.exit_code}")
    return {path: said.split()[0] for path, said in zip(paths, found, strict=True) if said != "?"}
