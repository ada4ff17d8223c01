"""The chat page as a file: one document that lets nothing in but itself."""

import re
from base64 import b64encode
from hashlib import sha256

import httpx
import pytest
from serving import serve

from lathe.testing import ScriptedModel


@pytest.fixture(scope="module")
def page():
    with serve(ScriptedModel(), api_key="secret") as url:
        response = httpx.get(f"{url}/")
        assert httpx.get(f"{url}/v1/models").status_code == 401, "the page needs no key, what it asks does"
        yield response


def test_it_is_one_document(page):
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*\s(?:src|href)=\"(?!data:)", page.text)
    assert not re.search(r"url\(|@import|import\(", page.text)


def test_the_policy_lets_in_these_scripts_and_this_style_alone(page):
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["trusted-types"] == "'none'"
    for tag in ("script", "style"):
        sources = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        assert sources
        hashes = [f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'" for source in sources]
        assert policy[f"{tag}-src"].split() == hashes
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"<[^>]+\s(?:on\w+|style)=", page.text), "no handler or style inside a tag"


def test_nothing_in_it_makes_html_of_text(page):
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        lines = [
            line for line in page.text.splitlines() if sink in line and not line.strip().startswith("//")
        ]
        assert not lines
