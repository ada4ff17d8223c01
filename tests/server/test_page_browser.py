"""The chat page in a real Chromium against the real server: what a person sees, presses and reads.

Each test also fails when the page logs an error, breaks its own policy, or asks any other server.
"""

import re
import shutil

import pytest
from serving import serve, thinker, wait_until

from lathe.testing import ScriptedModel

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
if CHROMIUM is not None:
    from playwright.sync_api import expect, sync_playwright

WEATHER = (
    "I will look.\n\n"
    "<tool_call>\n<function=get_weather>\n<parameter=city>\n{}\n</parameter>\n</function>\n</tool_call>"
)


@pytest.fixture(scope="module")
def browser():
    # Of this module alone: while it runs, this thread has an event loop that asyncio's tests would trip over.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def paper(browser):
    """A page to draw on, for tests of its functions alone."""
    with serve(ScriptedModel()) as url:
        page = browser.new_page()
        page.goto(url)
        yield page
        page.close()


@pytest.fixture
def visit(browser):
    """`visit(model)` serves it and opens the page; `expected` names errors that the console may show."""
    contexts = []
    servers = []

    def open_page(model, *, expected=None, api_key=None, **options):
        server = serve(model, api_key=api_key)
        url = server.__enter__()
        servers.append(server)
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        requests, errors = [], []
        context.on("request", lambda request: requests.append(request.url))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on(
            "console", lambda message: errors.append(message.text) if message.type == "error" else None
        )
        contexts.append((context, url, requests, errors, expected))
        page = context.new_page()
        page.goto(url)
        if api_key is None:
            expect(page.locator("#model b")).to_have_text("scripted")
        return page

    yield open_page
    for server in servers:
        server.__exit__(None, None, None)
    for context, url, requests, errors, expected in contexts:
        context.close()
        assert requests
        strangers = [asked for asked in requests if not asked.startswith((f"{url}/", "data:"))]
        assert strangers == []
        assert [error for error in errors if not (expected and re.search(expected, error))] == []


def ask(page, text, *, wait=True):
    page.locator("#draft").fill(text)
    page.keyboard.press("Enter")
    if wait:
        until_done(page)


def until_done(page):
    expect(page.locator("body")).not_to_have_class("busy")


def prompt_of(model, position=-1):
    return model.tokenizer.decode(list(model.engine.prompts[position]))


# A reply


def test_text_appears_before_the_end_and_numbers_come_with_it(visit):
    model = ScriptedModel("Once upon a time there was a lathe.", delay_s=0.03)
    page = visit(model)
    ask(page, "Tell me a story.", wait=False)
    expect(page.locator(".prose")).to_contain_text("Once upon")
    assert "lathe" not in page.locator(".prose").inner_text()
    assert model.engine.num_open == 1
    expect(page.locator("#stop")).to_be_visible()
    until_done(page)
    assert page.locator(".prose").inner_text() == "Once upon a time there was a lathe."
    facts = page.locator(".foot").inner_text()
    rate = float(re.search(r"([\d.]+) tok/s", facts)[1])
    assert 0 < rate < 100, "a token takes 30 ms"
    assert re.search(r"first token after \d+ m?s", facts)
    assert "36 tokens" in facts, "35 letters and the end"
    assert re.search(r"prompt \d+, 0 cached", facts)


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_reply_and_keeps_its_text(visit, how):
    model = ScriptedModel("word " * 2000, "Another.", delay_s=0.005)
    page = visit(model)
    ask(page, "Talk.", wait=False)
    expect(page.locator(".prose")).to_contain_text("word word")
    page.locator("#stop").click() if how == "button" else page.keyboard.press("Escape")
    assert wait_until(lambda: model.engine.num_open == 0, timeout_s=1.0)
    until_done(page)
    assert "word word" in page.locator(".prose").inner_text()
    assert "stopped" in page.locator(".foot").inner_text()
    ask(page, "Go on.")
    assert "word word" in prompt_of(model), "what stands on the screen is what the model is told it said"


def test_a_cut_reply_says_so(visit):
    page = visit(ScriptedModel("A long reply."))
    page.locator("#tune").click()
    page.locator("#max_tokens").fill("3")
    ask(page, "Hi.")
    assert page.locator(".prose").inner_text() == "A l"
    assert "limit of tokens" in page.locator(".note").inner_text()


def test_a_thought_is_folded_and_can_be_skipped(visit):
    model = thinker("<think>\nTwo and two.\n</think>\n\nFour.", "Five.", delay_s=0.02)
    page = visit(model)
    ask(page, "2 + 2?", wait=False)
    thought = page.locator(".reasoning")
    expect(thought.locator("summary")).to_have_text("Thinking")
    until_done(page)
    assert re.fullmatch(r"Thought for \d+ ms|Thought for [\d.]+ s", thought.locator("summary").inner_text())
    expect(thought.locator(".thoughts")).to_be_hidden()
    thought.locator("summary").click()
    assert thought.locator(".thoughts").inner_text() == "Two and two."
    assert page.locator(".prose").inner_text() == "Four."
    page.locator("#tune").click()
    page.get_by_label("Answer at once").check()
    ask(page, "2 + 3?")
    assert prompt_of(model).endswith("<think>\n\n</think>\n\n")
    expect(page.locator(".reasoning").last).to_be_hidden()


# Tools


def test_a_call_is_folded_and_answered_by_hand(visit):
    model = ScriptedModel(WEATHER.format("Vienna"), "It is **21 °C**.")
    page = visit(model)
    page.locator("#tune").click()
    page.locator("#example-tool").click()
    page.locator("#close").click()
    ask(page, "What is the weather in Vienna?")
    card = page.locator(".call")
    assert "get_weather" in card.locator("summary").inner_text()
    assert "waits for its result" in card.locator("summary").inner_text()
    assert card.locator("details").get_attribute("open") is None
    expect(card.locator("pre").first).to_be_hidden()
    result = page.get_by_label("Result of get_weather")
    expect(result).to_be_focused()
    card.locator("summary").click()
    assert card.locator("pre").first.inner_text() == '{\n  "city": "Vienna"\n}'
    result.fill('{"celsius": 21}')
    page.get_by_role("button", name="Send the results").click()
    until_done(page)
    assert page.locator(".prose").last.inner_text() == "It is 21 °C."
    assert "answered" in card.locator("summary").inner_text()
    assert '<tool_response>\n{"celsius": 21}\n</tool_response>' in prompt_of(model)
    assert "<function=get_weather>\n<parameter=city>\nVienna\n" in prompt_of(model)
    page.reload()
    page.locator(".call summary").click()
    assert page.locator(".call pre").all_inner_texts() == ['{\n  "city": "Vienna"\n}', '{"celsius": 21}']


def test_tools_that_are_no_json_are_said_to_be_before_anything_is_sent(visit):
    model = ScriptedModel("Hi.")
    page = visit(model)
    page.locator("#tune").click()
    page.locator("#tools").fill('[{"name": "a"')
    assert "no valid JSON" in page.locator("#tools-problem").inner_text()
    ask(page, "Hello?")
    assert "no valid JSON" in page.get_by_role("alert").filter(has_text="Try again").inner_text()
    assert model.engine.prompts == []
    page.locator("#tools").fill('{"name": "a"}')
    page.get_by_role("button", name="Try again").click()
    until_done(page)
    assert page.locator(".prose").inner_text() == "Hi."


# Safety

EVIL = """<img src=x onerror="window.hacked = 1"> <script>window.hacked = 2</script>

[click](javascript:window.hacked=3) [click](data:text/html,<script>window.hacked=4</script>)

![pixel](https://example.com/pixel.png)

```"><img src=x onerror=window.hacked=5>
<img src=x onerror=window.hacked=6>
```

| <img src=x onerror=window.hacked=7> | b |
|---|---|
| <svg onload=window.hacked=8> | `<b>` |

<style>body { display: none }</style><iframe src="https://example.com"></iframe>"""


def test_what_a_model_writes_is_inert(visit):
    call = WEATHER.format("<img src=x onerror=window.hacked=9>")
    page = visit(ScriptedModel(EVIL, call, EVIL))
    page.locator("#tune").click()
    page.locator("#example-tool").click()
    ask(page, EVIL)
    assert '<img src=x onerror="window.hacked = 1">' in page.locator(".prose").inner_text()
    assert page.locator(".bubble").inner_text() == EVIL
    ask(page, "Call.")
    page.get_by_label("Result of get_weather").fill(EVIL)
    page.get_by_role("button", name="Send the results").click()
    until_done(page)
    page.locator(".call summary").click()
    assert EVIL in page.locator(".call").inner_text()
    assert page.locator("main :is(img, script, style, iframe, svg[onload], [onerror])").count() == 0
    links = page.locator("main a").evaluate_all("links => links.map(link => [link.textContent, link.href])")
    places = [["pixel", "https://example.com/pixel.png"], ["https://example.com", "https://example.com/"]]
    assert links == places * 2, "shown, never fetched"
    page.reload()
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    expect(page.locator("h1")).to_be_visible()


def test_the_policy_holds_even_if_the_page_had_a_hole(visit):
    page = visit(ScriptedModel(), expected="Content Security Policy|TrustedHTML|Trusted Type")
    assert (
        page.evaluate("try { document.body.innerHTML = '<b>no</b>'; 'let in' } catch (error) { error.name }")
        == "TypeError"
    )
    page.evaluate(
        "const style = document.createElement('style'); style.textContent = 'h1 {color: red}';"
        "document.head.append(style)"
    )
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    assert page.evaluate("fetch('https://example.com').then(() => 'let in', () => 'refused')") == "refused"


# Errors


def test_an_error_shows_the_servers_message_and_loses_nothing(visit):
    model = ScriptedModel("Better.")
    page = visit(model, expected="400")
    page.locator("#tune").click()
    page.locator("#temperature").fill("7")
    ask(page, "My long question.")
    assert "temperature: Input should be less than or equal to 2" in page.locator(".note.error").inner_text()
    assert page.locator(".bubble").inner_text() == "My long question."
    page.reload()
    expect(page.locator(".note.error")).to_be_visible()
    page.locator("#tune").click()
    page.locator("#temperature").fill("0.5")
    page.get_by_role("button", name="Try again").click()
    until_done(page)
    assert page.locator(".prose").inner_text() == "Better."
    assert page.locator(".note").count() == 0


def test_a_server_that_is_gone(visit, browser):
    context = browser.new_context()
    page = context.new_page()
    with serve(ScriptedModel("word " * 2000, delay_s=0.01)) as url:
        page.goto(url)
        expect(page.locator("#model b")).to_be_visible()
        ask(page, "Talk.", wait=False)
        expect(page.locator(".prose")).to_contain_text("word word")
    until_done(page)
    assert "word word" in page.locator(".prose").inner_text(), "what had come stays"
    assert "connection closed" in page.locator(".note.error").inner_text()
    ask(page, "Still there?")
    assert "can't be reached" in page.locator(".note.error").last.inner_text()
    assert page.locator(".bubble").last.inner_text() == "Still there?"
    context.close()


def test_a_key_is_asked_for_and_does_not_outlive_the_tab(visit):
    page = visit(ScriptedModel("Welcome."), api_key="sésame", expected="401")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.get_by_label("Key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("The server did not accept this key.")
    page.get_by_role("button", name="Not now").click()
    ask(page, "Let me in.")
    expect(dialog).to_be_visible()
    page.get_by_label("Key", exact=True).fill("sésame")
    page.keyboard.press("Enter")
    expect(page.locator(".prose")).to_have_text("Welcome.")
    assert page.locator(".turn").count() == 2
    page.reload()
    expect(page.locator("#model b")).to_have_text("scripted")
    assert "sésame" not in page.evaluate("JSON.stringify(localStorage)")


# The conversation


def test_ask_again_edit_clear_and_undo(visit):
    model = ScriptedModel("One.", "Two.", "Three.", "Four.")
    page = visit(model)
    ask(page, "First?")
    ask(page, "Second?")
    replies = page.locator(".assistant .prose")
    page.get_by_role("button", name="Ask again").click()
    until_done(page)
    assert replies.all_inner_texts() == ["One.", "Three."]
    assert prompt_of(model) == prompt_of(model, -2)
    page.locator("#draft").press("ArrowUp")
    box = page.get_by_label("Edit your message")
    expect(box).to_have_value("Second?")
    box.fill("Changed?")
    page.keyboard.press("Enter")
    until_done(page)
    assert page.locator(".bubble").all_inner_texts() == ["First?", "Changed?"]
    assert replies.all_inner_texts() == ["One.", "Four."]
    assert "Second?" not in prompt_of(model)
    page.reload()
    assert replies.all_inner_texts() == ["One.", "Four."]
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    assert replies.all_inner_texts() == ["One.", "Four."]


def test_keys_and_a_draft_that_stays(visit):
    model = ScriptedModel("Hi.")
    page = visit(model)
    expect(page.locator("#draft")).to_be_focused()
    page.keyboard.type("line one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line two")
    assert model.engine.prompts == []
    page.reload()
    expect(page.locator("#draft")).to_have_value("line one\nline two")
    page.locator("#draft").press("Enter")
    until_done(page)
    assert page.locator(".bubble").inner_text() == "line one\nline two"
    expect(page.locator("#draft")).to_have_value("")
    expect(page.locator("#draft")).to_be_focused()


def test_parameters_reach_the_model(visit, monkeypatch):
    model = ScriptedModel("Hi.", "Hi.")
    seen = []
    submit = model.engine.submit
    monkeypatch.setattr(
        model.engine,
        "submit",
        lambda ids, sampling, report: seen.append(sampling) or submit(ids, sampling, report),
    )
    page = visit(model)
    ask(page, "Hi.")
    page.locator("#tune").click()
    given = {"temperature": 0.25, "top_p": 0.9, "top_k": 7, "max_tokens": 50, "seed": 11}
    for name, value in given.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_label("System prompt").fill("You are terse.")
    page.get_by_label("Deterministic").check()
    ask(page, "Hi.")
    plain, changed = seen
    assert plain == model.default_sampling
    assert changed.deterministic
    assert {name: getattr(changed, name) for name in given} == given
    assert "You are terse." in prompt_of(model)
    page.get_by_role("button", name="Back to defaults").click()
    expect(page.locator("#temperature")).to_have_value("")
    assert page.evaluate("localStorage.getItem('lathe.settings')") == "{}"


# Looks


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_dark_and_light_follow_the_system_until_told(visit):
    page = visit(ScriptedModel(), color_scheme="dark")
    dark = background(page)
    page.emulate_media(color_scheme="light")
    light = background(page)
    assert dark != light
    toggle = page.get_by_role("button", name="Switch between dark and light")
    toggle.click()
    assert background(page) == dark
    page.reload()
    assert background(page) == dark, "the choice is kept"
    toggle.click()
    page.emulate_media(color_scheme="dark")
    assert background(page) == dark, "back at the system's own, it follows the system again"


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colors) => {
    const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgba(colors).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !node.checkVisibility()) continue;
    const grounds = [];
    for (let at = node; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const [a, b] = [light(grounds), light([...grounds, getComputedStyle(node).color])];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), texts.currentNode.data.slice(0, 40)]);
  }
  return found;
}"""


def test_every_text_has_the_contrast_that_wcag_asks_for(visit):
    code = "Some `code`.\n\n```python\n# note\ndef f(x): return 'a' + str(12)\n```\n\n> quoted [link](https://a.b)\n\n"
    page = visit(
        ScriptedModel(code, WEATHER.format("Vienna")),
        reduced_motion="reduce",
        expected="400",
    )
    page.locator("#tune").click()
    page.locator("#example-tool").click()
    ask(page, "Hi.")
    ask(page, "Call.")
    page.locator("#temperature").fill("7")
    ask(page, "Fail.")
    expect(page.locator(".note.error")).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate(CONTRAST)
        assert len(found) > 50
        assert [(scheme, ratio, text) for ratio, text in found if ratio < 4.5] == []


def test_on_a_phone_nothing_is_wider_than_the_screen(visit):
    table = "| " + " | ".join(["column"] * 20) + " |\n" + "|---" * 20 + "|\n"
    wide = f"`{'x' * 300}`\n\n```\n{'y' * 300}\n```\n\n{table}"
    phone = {"width": 320, "height": 640}
    page = visit(ScriptedModel(wide), viewport=phone, is_mobile=True, has_touch=True)
    page.locator("#draft").fill("z" * 300)
    page.locator("#send").click()
    until_done(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.locator("#scroller").evaluate("node => node.scrollWidth - node.clientWidth") == 0
    page.locator("#tune").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.locator("#settings").evaluate("node => node.scrollWidth - node.clientWidth") == 0
    page.get_by_label("Temperature", exact=True).fill("1")
    page.get_by_role("button", name="Close settings").click()
    expect(page.locator("#settings")).to_be_hidden()


def test_everything_that_can_be_pressed_or_filled_has_a_name(visit):
    page = visit(ScriptedModel("```\ncode\n```", WEATHER.format("Vienna")))
    page.locator("#tune").click()
    page.locator("#example-tool").click()
    ask(page, "Hi.")
    ask(page, "Call.")
    nameless = page.locator("button, input, textarea, summary").evaluate_all(
        "nodes => nodes.filter(node => !(node.ariaLabel || node.innerText.trim() || node.labels?.length))"
        ".filter(node => node.checkVisibility()).map(node => node.outerHTML)"
    )
    assert nameless == []


# Markdown

DRAW = "text => { const box = document.createElement('div'); drawMarkdown(box, text); return box.innerHTML }"


def link(url, text):
    return f'<a href="{url}" target="_blank" rel="noopener noreferrer">{text}</a>'


MARKDOWN = {
    "a *b* **c** ***d*** ~~e~~ `f`": (
        "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <s>e</s> <code>f</code></p>"
    ),
    "*a **b** c*": "<p><em>a <strong>b</strong> c</em></p>",
    "**a *b***": "<p><strong>a <em>b</em></strong></p>",
    "some_snake_case and 2 * 3 * 4": "<p>some_snake_case and 2 * 3 * 4</p>",
    "__init__ and _em_": "<p><strong>init</strong> and <em>em</em></p>",
    r"\*not\* **open": "<p>*not* **open</p>",
    "``a ` b`` `*x*`": "<p><code>a ` b</code> <code>*x*</code></p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# A\n### B\n#no": "<h2>A</h2><h4>B</h4><p>#no</p>",
    "a\n***\nb": "<p>a</p><hr><p>b</p>",
    "> a\n> > b": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>",
    "- a\n- b\n  - c\n\n  d\n- [x] e": (
        "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul><p>d</p></li><li><p>☑ e</p></li></ul>"
    ),
    "3. a\n4) b\n- c": '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol><ul><li><p>c</p></li></ul>',
    "a | b\n--|:-:\n1 | `x\\|y` | z": (
        '<div class="table" tabindex="0" role="region" aria-label="Table"><table><thead><tr>'
        '<th class="start">a</th><th class="middle">b</th></tr></thead><tbody><tr>'
        '<td class="start">1</td><td class="middle"><code>x|y</code></td></tr></tbody></table></div>'
    ),
    '[a](https://x.y/(z)?q=1 "t") <https://b.c>.': (
        f"<p>{link('https://x.y/(z)?q=1', 'a')} {link('https://b.c', 'https://b.c')}.</p>"
    ),
    "(see https://x.y/z).": f"<p>(see {link('https://x.y/z', 'https://x.y/z')}).</p>",
    "[https://x.y](https://x.y)": f"<p>{link('https://x.y', 'https://x.y')}</p>",
    "![alt](http://x.y/p.png)": f"<p>{link('http://x.y/p.png', 'alt')}</p>",
    "[a](JavaScript:b) [c](//d)": "<p>[a](JavaScript:b) [c](//d)</p>",
    "&lt; <b> &amp;": "<p>&amp;lt; &lt;b&gt; &amp;amp;</p>",
}


def test_markdown(paper):
    drawn = {text: paper.evaluate(DRAW, text) for text in MARKDOWN}
    assert drawn == MARKDOWN


def test_code_is_coloured_and_keeps_every_character(paper):
    source = "def f(x):  # note\n    return \"a\\\"b\" + str(0x1F) + '''c\nd'''"
    for language in ("python", "js", "sql", "html", "rust", "diff", "json", "", "brainfuck"):
        for fence in ("```", "~~~~"):
            text = f"{fence}{language}\n{source}\n{fence}\nafter"
            paper.evaluate(
                "text => { window.box = document.createElement('div'); drawMarkdown(box, text) }", text
            )
            assert paper.evaluate("box.querySelector('code').textContent") == source
            assert paper.evaluate("box.querySelector('p').textContent") == "after"
    kinds = paper.evaluate(
        "highlight(`def f(x): return 'a' + 1 # c`, 'python')"
        ".filter(node => node.className).map(node => [node.className, node.textContent])"
    )
    assert kinds == [["k", "def"], ["f", "f"], ["k", "return"], ["s", "'a'"], ["n", "1"], ["c", "# c"]]


def test_a_text_that_streams_is_drawn_as_the_whole(paper):
    text = "\n\n".join(MARKDOWN) + "\n\n```python\nx = 1\n```\n\nend **of** it"
    streamed = paper.evaluate(
        "text => { const box = document.createElement('div');"
        "for (let i = 0; i <= text.length; i++) drawMarkdown(box, text.slice(0, i)); return box.innerHTML }",
        text,
    )
    assert streamed == paper.evaluate(DRAW, text)


def test_no_text_takes_long_to_draw(paper):
    pieces = [
        "*a ", "_a", "**a *b ", "*", "~~", "* *", "`", "a`b``c```", "[", "[a](", "![", "<", "https://a.",
        "(((https://)", "> ", "- ", "1. a\n\n", "# ", "|-|\n", "```\n", "\\", " ", "a  \n", "\n",
    ]  # fmt: skip
    size = 100_000
    texts = {piece: piece * (size // len(piece)) for piece in pieces}
    for start, filling, end in (
        ("# ", " ", "x"), ("|", " ", "|"), ("```", "x", "`"), ("https://a", ".", "x"), ("` ", " ", "`"),
        ("- a\n", " ", "x"), ("|a|\n|-|\n", "|", ""), ("**a", " ", "**"), ("```py\n", "'", ""),
        ("---", " ", "x"),
    ):  # fmt: skip
        texts[f"{start}{filling}…{end}"] = start + filling * size + end
    timed = (
        "text => { const started = performance.now();"
        "drawMarkdown(document.createElement('div'), text); return performance.now() - started }"
    )

    def is_slow(text):
        # What takes time by the square of its length takes 6 s and more; what doesn't may once be held up.
        return all(paper.evaluate(timed, text) > 3000 for _ in range(3))

    assert [name for name, text in texts.items() if is_slow(text)] == []
