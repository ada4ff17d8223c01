"""A session at work, without a terminal around it."""

import asyncio
from pathlib import Path

import pytest
from scripts import call

from lathe.agent import shadow as shadow_module
from lathe.agent.approvals import Approvals
from lathe.agent.attempt import AgentConfig
from lathe.agent.coder import Coder, Permission
from lathe.agent.session import SessionStore
from lathe.agent.shadow import Shadow
from lathe.agent.workplace import PlaceConfig, Workplace
from lathe.errors import UserError
from lathe.testing import ScriptedModel


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.py").write_text("one = 1\n")
    return folder


def is_there(path: str) -> bool:
    return Path(path).exists()


@pytest.fixture
async def open_coder(tmp_path, folder):
    """A coder on these replies. No sandbox: what is tested here is around it."""
    store = SessionStore(tmp_path / "state", folder)
    workplace = Workplace(PlaceConfig(folder, is_sandboxed=False))

    def open_one(*replies, mode="yolo", session=None, ask=None, warn=print, **model_options):
        model = ScriptedModel(*replies, **model_options)
        return Coder(
            model,
            workplace,
            session or store.create("scripted"),
            Shadow(folder, tmp_path / "state" / "shadow"),
            Approvals(mode),
            AgentConfig(),
            ask=ask,
            warn=warn,
        )

    open_one.store = store
    async with workplace:
        yield open_one
        kept = (await workplace.sandbox()).kept
    assert not is_there(kept)
    assert await workplace.sandbox() is await workplace.sandbox()
    await workplace.forget()


async def test_a_mentioned_file_is_shown(open_coder):
    coder = open_coder("Seen.")
    await coder.say("look at @a.py and @nothing.py")
    turn = coder.session.trajectory.messages[1].content
    assert turn.endswith('look at @a.py and @nothing.py\n\n<file path="a.py">\none = 1\n\n</file>')


async def test_a_summed_up_session_goes_back_behind_the_summary(open_coder, folder):
    coder = open_coder(
        "One.", call("bash", command="echo two >a.py"), "Two.", "The summary.", "Three.", "Again."
    )
    await coder.say("first")
    await coder.say("second")
    await coder.compact()
    attempt = await coder.say("third")
    assert coder.answer_of(attempt) == "Three."
    assert "The summary." in coder.session.trajectory.messages[2].content
    coder.session.close()

    coder = open_coder("Again.", session=open_coder.store.resume())
    point = coder.session.points[1]
    files = await coder.plan_rewind(point)
    assert files.written == ("a.py",)
    await coder.rewind(point, files)
    assert (folder / "a.py").read_text() == "one = 1\n"
    assert [message.content for message in coder.session.trajectory.messages[2:]] == ["One."]
    await coder.say("again")
    assert coder.session.trajectory.messages[-1].content == "Again."


async def test_nothing_said_is_nothing_to_sum_up(open_coder):
    with pytest.raises(UserError, match="no conversation"):
        await open_coder().compact()


async def test_another_model_reads_the_conversation_anew(open_coder):
    coder = open_coder("One.")
    await coder.say("first")
    old = coder.session.trajectory
    other = ScriptedModel("Two.")
    coder.use_model(other, "other")
    await coder.say("second")
    new = coder.session.trajectory
    assert new.parent == old.id
    assert new.messages[:3] == old.messages
    assert len(new.segments) == 1
    coder.session.close()
    assert open_coder.store.resume().model == "other"


async def test_the_same_model_goes_on_from_the_exact_tokens(open_coder):
    coder = open_coder("One.")
    await coder.say("first")
    old = coder.session.trajectory
    coder.session.close()
    coder = open_coder("Two.", session=open_coder.store.resume())
    coder.use_model(coder.model, "scripted")
    await coder.say("second")
    new = coder.session.trajectory
    assert new.id == old.id
    assert new.token_ids[: len(old.token_ids)] == old.token_ids
    assert len(new.segments) == 2


async def test_files_that_cant_be_kept_are_told_once_and_the_work_goes_on(open_coder, monkeypatch):
    monkeypatch.setattr(shadow_module, "MAX_FILES", 0)
    told = []
    coder = open_coder("One.", "Two.", warn=told.append)
    await coder.say("first")
    attempt = await coder.say("second")
    assert attempt.stop_reason == "done"
    assert len(told) == 1
    assert "more than 0" in told[0]
    assert await coder.plan_rewind(coder.session.points[0]) is None


async def test_an_answer_of_an_earlier_turn_is_not_given_again(open_coder):
    coder = open_coder("One.", "word " * 300, delay_s=0.001)
    await coder.say("first")
    interrupt = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, interrupt.set)
    attempt = await coder.say("second", interrupt)
    assert attempt.stop_reason == "interrupted"
    assert coder.answer_of(attempt) == ""


async def test_words_of_a_refusal_reach_the_model(open_coder):
    async def ask(proposal):
        return Permission(False, words="the user said: use tabs")

    coder = open_coder(call("write", file_path="b.py", content="x"), "Then not.", mode="ask", ask=ask)
    await coder.say("write it")
    assert "use tabs" in coder.session.trajectory.messages[-2].content
    assert [refused.name for refused in coder.refused] == ["write"]


async def test_the_window_is_shared_out(open_coder, folder):
    coder = open_coder(call("read", file_path=str(folder / "a.py")), "Read.", mode="ask")
    await coder.say("read it")
    window = coder.window()
    assert window.is_exact
    assert window.num_tokens == len(coder.session.trajectory.token_ids)
    assert sum(window.parts.values()) == window.num_tokens
    assert all(window.parts[name] > 0 for name in ("system", "tools", "files", "messages"))
    assert window.size == 32_768
