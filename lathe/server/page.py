"""GET /: a chat page that asks this server. One document, which fetches nothing but replies.

Its parts are files in web/, put into one document when the app is made. The page's Content-Security-Policy
lets in these parts and nothing else, by their hashes: what a model writes can neither run nor load anything,
whatever mistake the page's own code might make.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import FastAPI, Response

STYLE = re.compile(r'<link rel="stylesheet" href="([\w.]+)">')
SCRIPT = re.compile(r'<script src="([\w.]+)"></script>')


def install(app: FastAPI) -> None:
    """Add the route. It needs no API key: the page holds no secret, and asks its reader for the key."""
    html, policy = join(files("lathe.server") / "web")
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, headers=headers, media_type="text/html")


def join(folder: Traversable) -> tuple[str, str]:
    """The document with its style and scripts inside, and the policy that names their hashes."""
    html = (folder / "index.html").read_text("utf-8")
    hashes: dict[str, list[str]] = {"style": [], "script": []}
    for tag, link in (("style", STYLE), ("script", SCRIPT)):

        def put_inside(found: re.Match[str], tag: str = tag) -> str:
            source = (folder / found[1]).read_text("utf-8")
            hashes[tag].append(f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'")
            return f"<{tag}>{source}</{tag}>"

        html = link.sub(put_inside, html)
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(hashes["script"]),
        "style-src": " ".join(hashes["style"]),
        "connect-src": "'self'",
        "img-src": "data:",  # the tab's icon
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        # No text is ever parsed as HTML: innerHTML throws.
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return html, "; ".join(f"{name} {value}" for name, value in policy.items())
