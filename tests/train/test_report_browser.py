"""The report in a real Chromium: what a pointer shows, on a desk, on a phone, in the dark.

Each test also fails when the page logs an error, breaks its own policy, or asks for anything beside itself.
"""

import shutil

import pytest
from run_folders import HOSTILE, TOKENIZER, Recipe, attempt, make_run

from lathe.train.report import write_report
from lathe.train.runs import read_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
if CHROMIUM is not None:
    from playwright.sync_api import expect, sync_playwright


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    attempts = [attempt(HOSTILE, task=HOSTILE), attempt("no", 0.0, task=HOSTILE), attempt("?", None)]
    runs = [
        make_run(folder / f"{HOSTILE[:34].replace('/', '|')} {seed}", Recipe(seed), attempts=attempts)
        for seed in (1, 2)
    ]
    write_report(read_runs(runs), folder / "report.html", lambda model: TOKENIZER)
    return f"file://{folder}/report.html"


@pytest.fixture
def visit(browser, report):
    contexts, noticed = [], []

    def open_page(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: noticed.append(message.text))
        page.on("pageerror", lambda error: noticed.append(str(error)))
        page.on("request", lambda request: noticed.append(request.url) if request.url != report else None)
        page.goto(report)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not noticed


def test_a_pointer_reads_curves_and_tokens(visit):
    page = visit(viewport={"width": 1200, "height": 800})
    assert page.title() == "2 runs", "what the model wrote has not run"
    assert page.locator("img").count() == 0
    chart = page.locator("figure[data-metric=reward] svg")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 409 / 420, box["y"] + 60)
    expect(page.locator("#tip")).to_contain_text("step 11")
    assert page.locator("#tip div").count() == 3
    assert page.locator("#tip b").nth(2).inner_text() == "1"
    page.locator(".tokens b").first.hover()
    expect(page.locator("#tip")).to_contain_text("log-probability")
    page.get_by_label("surprise").check()
    expect(page.locator("body")).to_have_class("by-surprise")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_its_colours_the_light(visit, scheme):
    page = visit(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, color[4:-1].split(","))) < 200) == (scheme == "dark")
    page.locator(".tokens b").first.tap()
    expect(page.locator("#tip")).to_be_visible()
