"""What a sandbox is made of. An environment is data: layers of an image, limits, and what it may reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lathe.types import Limits

Network = Literal["none", "loopback"]


@dataclass(frozen=True)
class Egress:
    """A network that reaches these hosts alone, by HTTP and HTTPS through a proxy: "pypi.org:443".

    "localhost:8000" is a port of this machine: a model's server, for an agent that runs in the sandbox.
    """

    allow: tuple[str, ...]


@dataclass(frozen=True)
class Bind:
    """A folder of this machine that the sandbox sees at `path`."""

    source: str
    path: str
    writable: bool = False


@dataclass(frozen=True)
class SandboxSpec:
    """Everything that a backend needs to make a sandbox.

    `image` is an id from `images.ImageStore`, None for this machine's own programs (`/usr`, `/bin`, `/lib`,
    the running Python and the like, without homes and secrets). What the sandbox writes goes to a layer of
    its own, but for writable binds. `env` adds to a small clean environment; nothing of the caller's leaks.
    """

    image: str | None = None
    workdir: str = "/work"
    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    network: Network | Egress = "none"
    hostname: str = "sandbox"
