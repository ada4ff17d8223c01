"""A report says what the runs did, whatever a model wrote, in one file of bounded size."""

import html.parser
import json
import math
import re
import xml.etree.ElementTree as ET

import pytest
from run_folders import HOSTILE, TOKENIZER, Recipe, Train, attempt, make_run
from typer.testing import CliRunner

from lathe.cli import app
from lathe.errors import RecordError, UserError
from lathe.train.report import page, write_picture, write_report
from lathe.train.runs import read_run, read_runs
from lathe.train.samples import attempt_html, attempts_of, choose, plain
from lathe.types import Message, Rollout, Trajectory


class Parsed(html.parser.HTMLParser):
    """The tags and the text of a page, as a browser would find them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.loads, self.inside = [], "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        self.loads += [
            f"{name}={value}"
            for name, value in attrs
            if name in ("src", "href", "style") or name.startswith("on")
        ]

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data


def no_tokenizer(model):
    return None


def tiny(model):
    return TOKENIZER


def test_what_a_model_wrote_is_text(tmp_path):
    hostile = attempt(HOSTILE, task=HOSTILE, stop_reason=HOSTILE)
    make_run(tmp_path / "<img src=y>", attempts=[hostile], **{"<img>": lambda step: step})
    for tokenizer_of in (tiny, no_tokenizer):
        text = page([read_run(tmp_path / "<img src=y>")], tokenizer_of)
        found = Parsed(text)
        assert "img" not in found.tags
        assert not found.loads
        assert found.tags.count("script") == text.count("</script>") == 2
        assert "<img src=x onerror=document.title='owned'>" in found.text
        assert not {"\u202e", "\x1b"} & set(text)
        assert "⟨202E⟩gnp.exe ⟨1B⟩[2J 日本 🙂" in found.text


def test_a_page_needs_nothing_but_itself(tmp_path):
    text = page([read_run(make_run(tmp_path / "a", attempts=[attempt()]))], tiny)
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text
    assert "unsafe" not in text


def test_metrics_are_drawn_unknown_ones_too(tmp_path):
    run = make_run(
        tmp_path / "a",
        eval_pass_rate=lambda step: step / 11 if step % 5 == 0 else None,
        mismatch=lambda step: 0.0,
        my_own_thing=lambda step: math.nan if step == 3 else step,
    )
    text = page([read_run(run)], no_tokenizer)
    assert re.findall(r'data-metric="(\w+)"', text) == [
        "eval_pass_rate",
        "reward",
        "mismatch",
        "seconds",
        "my_own_thing",
    ]
    assert "0 at every step" in text
    assert "My own thing" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert data["steps"] == [0, 11]
    assert data["metrics"]["eval_pass_rate"] == [[[0, 5, 10], ["0%", "45.5%", "90.9%"]]]
    assert data["metrics"]["my_own_thing"][0][1][3] == "not a number"


def test_several_runs_are_laid_over_each_other(tmp_path):
    folders = [
        make_run(tmp_path / "x" / "run", Recipe(seed=1), num_steps=3),
        make_run(tmp_path / "y" / "run", Recipe(seed=2, loss="grpo"), num_steps=9),
    ]
    runs = read_runs([*folders, folders[0]])
    assert [run.name for run in runs] == ["x/run", "y/run"]
    text = page(runs, no_tokenizer)
    figure = re.search(r'<figure data-metric="reward">.*?</figure>', text)[0]
    assert len(re.findall(r'<path class="line', figure)) == 2
    differ, same = text.split('<table class="settings')[1:]
    assert re.findall(r"<tr><th>([\w.]+)</th>", differ) == ["seed", "loss"]
    assert "<td>gspo</td><td>grpo</td>" in differ
    assert re.findall(r"<tr><th>([\w.]+)</th>", same) == ["train.lr"]


def test_tokens_are_boxes_and_what_is_trained_is_marked(tmp_path):
    passed, failed = attempt("ab🙂\n"), attempt("no", 0.0)
    group = attempts_of(7, [passed, failed, attempt("?", None)])
    assert [each.advantage for each in group] == [0.5, -0.5, None]
    text = attempt_html(group[0], TOKENIZER)
    assert 'class="attempt up a2"' in text
    assert re.findall(r"<i[^>]*>([^<]*)</i>", text)[:2] == ["&lt;|im_start|&gt;", "u"]
    boxes = re.findall(r'<b class="(l\d n?)?[^"]*" data-id="([\d ]+)" data-lp="([^"]*)">([^<]*)</b>', text)
    assert [box[3] for box in boxes] == ["a", "b", "🙂", "\n"]
    assert boxes[2][1].count(" ") == 3, "four bytes are one character, and one box"
    assert 'class="attempt down a2"' in attempt_html(group[1], TOKENIZER)
    invalid = attempt_html(group[2], TOKENIZER)
    assert 'class="attempt none"' in invalid
    assert "it ran out of memory" in invalid
    noted = attempts_of(7, [attempt(info={"advantage": -1.5}), attempt("b", 0.0)])[0]
    assert "<span>advantage −1.50</span>" in attempt_html(noted, TOKENIZER)


def test_without_a_tokenizer_messages_are_shown():
    text = attempt_html(attempts_of(0, [attempt("I <b>did</b> it.")])[0], None)
    assert '<i class="turn">Do it.</i>' in text
    assert '<b class="turn">I &lt;b&gt;did&lt;/b&gt; it.</b>' in text
    raw = Rollout((Trajectory((), token_ids=(1, 2), loss_mask=(False, True), logprobs=(0.0, -1.0)),))
    assert "2 ids, and no tokenizer to read them" in attempt_html(attempts_of(0, [raw])[0], None)


def test_the_best_the_worst_and_a_failed_machine_are_chosen():
    rollouts = [attempt("same", task="all"), attempt("same", task="all")]
    rollouts += [attempt("bad", 0.0), attempt("good"), attempt("lost", None), attempt("bad", 0.0)]
    chosen = choose(attempts_of(0, rollouts), 3)
    assert [each.rollout.trajectories[0].messages[-1].content for each in chosen] == ["good", "bad", "lost"]
    assert len(choose(attempts_of(0, rollouts), 20)) == len(rollouts)
    assert choose([], 3) == []


def test_long_runs_and_long_attempts_stay_small(tmp_path):
    long = attempt("word " * 5_000 + HOSTILE)
    many = Rollout(tuple(attempt("x").trajectories[0] for _ in range(50)))
    chat = Rollout((Trajectory(tuple(Message("user", "ü" * 9_000) for _ in range(60))),))
    noise = {f"m{number}": lambda step, number=number: math.sin(step * number) for number in range(10)}
    folders = [
        make_run(tmp_path / f"r{number}", num_steps=600, attempts=[long, many, chat], **noise)
        for number in range(2)
    ]
    assert write_report(read_runs(folders), tmp_path / "out.html", tiny) < 3_000_000
    text = (tmp_path / "out.html").read_text()
    assert re.search(r"… \d{2},\d{3} tokens …", text)
    assert text.count("<b ") < 900 * 3 + 1000
    assert "… and 47 more trajectories" in text
    assert "20 more messages" in text


def test_a_picture_stands_alone(tmp_path):
    runs = read_runs([make_run(tmp_path / f"<seed {n}>", loss=lambda step, n=n: n + step) for n in range(3)])
    write_picture(runs, "loss", tmp_path / "curve.svg", "Loss & all")
    root = ET.parse(tmp_path / "curve.svg").getroot()
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "Loss & all"
    assert texts[-4:] == ["<seed 0>", "<seed 1>", "<seed 2>", "step"]
    lines = [
        each.get("d") for each in root.iter("{http://www.w3.org/2000/svg}path") if "line" in each.get("class")
    ]
    assert len(lines) == 3
    assert all(len(line.split("L")) == 12 for line in lines)
    with pytest.raises(UserError, match=r"No run measured lose\. They have: reward, loss, seconds"):
        write_picture(runs, "lose", tmp_path / "curve.svg")


def test_an_unbegun_run_has_a_report_and_none_has_not(tmp_path):
    assert "<td>0</td>" in page([read_run(make_run(tmp_path / "a", num_steps=0))], no_tokenizer)
    with pytest.raises(RecordError, match="is no run"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="17 runs are too many"):
        page([read_run(tmp_path / "a")] * 17, no_tokenizer)


def test_plain_shows_what_can_not_be_seen():
    assert plain("a\u200bb\ud800\u2066\x00\u00ad\ufeff") == "a⟨200B⟩b⟨D800⟩⟨2066⟩⟨00⟩⟨AD⟩⟨FEFF⟩"
    assert plain("ä\n\t\u3000'\"&<") == "ä\n\t\u3000&#x27;&quot;&amp;&lt;"


def test_the_command_line(tmp_path):
    run = make_run(tmp_path / "a", Recipe(train=Train(lr=1.0)), attempts=[attempt()])
    result = CliRunner().invoke(
        app, ["report", str(run), "--out", str(tmp_path / "r.html"), "--title", "Mine"]
    )
    assert result.exit_code == 0, result.output
    text = (tmp_path / "r.html").read_text()
    assert "<h1>Mine</h1>" in text
    assert '<b class="turn">Done.\n</b>' in text
    picture = ["report", str(run), "--svg", str(tmp_path / "c.svg"), "--metric", "reward"]
    assert CliRunner().invoke(app, picture).exit_code == 0
    assert (tmp_path / "c.svg").read_text().startswith("<svg ")
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 1
