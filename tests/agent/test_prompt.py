"""How a conversation begins."""

from datetime import date

from lathe.agent import prompt
from lathe.agent.loop import run
from lathe.agent.tools import NATIVE_TOOLS
from lathe.sandbox.spec import SandboxSpec
from lathe.testing import ScriptedModel

COMMIT = "git -c user.name=a -c user.email=b commit -q"


async def test_the_beginning_is_the_same_and_the_day_comes_behind(box):
    one, other = [
        await prompt.opening("Go.", sandbox=box, tools=NATIVE_TOOLS, today=date(2026, 11, day))
        for day in (24, 25)
    ]
    assert one.messages[0] == other.messages[0] and one.tools == other.tools
    first = one.messages[1].content
    assert first.startswith("<context>\nToday is Tuesday, 24 November 2026.\nThe working folder is /work.\n")
    assert "no git repository" in first and first.endswith("</context>\n\nGo.")


async def test_git_is_seen(box):
    await box.exec(f"git init -q -b main . && touch a b && git add a && {COMMIT} -m 'The first'")
    root, state = await prompt.git_state(box)
    assert root == "/work"
    assert state.startswith("git status at the beginning (root /work):\n## main\n?? b\nLatest commits:\n")
    assert state.endswith(" The first")
    await box.exec("for n in $(seq 50); do touch f$n; done")
    _, state = await prompt.git_state(box)
    assert len(state.splitlines()) < 30 and "\n…\n" in state


async def test_a_repository_without_commits(box):
    await box.exec("git init -q -b main .")
    assert "No commits yet on main" in (await prompt.git_state(box))[1]


async def test_memories_from_the_folder_up_to_the_root(pool):
    box = await pool.create(SandboxSpec(workdir="/repo/a/b"))
    await box.exec("git init -q /repo")
    await box.write("/AGENTS.md", "outside")
    await box.write("/repo/AGENTS.md", "Use tabs.")
    await box.write("/repo/a/QWEN.md", "Use spaces.")
    await box.write("/repo/a/b/AGENTS.md", "Use neither.")
    await box.exec("ln -s AGENTS.md /repo/a/b/QWEN.md")
    found = await prompt.read_memories(box, "/repo")
    assert [(memory.path, memory.text) for memory in found] == [
        ("/repo/a/b/AGENTS.md", "Use neither."),
        ("/repo/a/QWEN.md", "Use spaces."),
        ("/repo/AGENTS.md", "Use tabs."),
    ]
    assert [memory.text for memory in await prompt.read_memories(box, None)] == ["Use neither."]
    mine = [prompt.Memory("~/.qwen/QWEN.md", "Be kind.")]
    first = await prompt.first_turn(box, "Go.", memories=mine)
    places = [first.index(words) for words in ("Be kind.", "Use neither.", "Use spaces.", "Use tabs.", "Go.")]
    assert places == sorted(places) and "outside" not in first


async def test_memories_are_cut(box):
    await box.write("AGENTS.md", "a" * 11_000)
    await box.write("QWEN.md", "b" * 11_000)
    one, other = await prompt.read_memories(box, None)
    assert one.text == "a" * 11_000 and other.text.startswith("b" * 1000 + "\n[… 10000 characters left out")


def test_the_users_own(tmp_path):
    assert prompt.user_memories(tmp_path) == []
    (tmp_path / ".qwen").mkdir()
    (tmp_path / ".qwen" / "QWEN.md").write_text("Qwen's")
    assert [memory.text for memory in prompt.user_memories(tmp_path)] == ["Qwen's"]
    (tmp_path / ".config" / "lathe").mkdir(parents=True)
    (tmp_path / ".config" / "lathe" / "AGENTS.md").write_text("Lathe's")
    assert [memory.text for memory in prompt.user_memories(tmp_path)] == ["Lathe's"]


async def test_a_run_begins_so(box):
    await box.write("AGENTS.md", "Say please.")
    attempt = await run(ScriptedModel("Please."), box, "Go.", today=date(2026, 11, 24))
    system, first = attempt.trajectory.messages[:2]
    assert system.content == prompt.SYSTEM
    assert (
        f'<file path="{box.workdir}/AGENTS.md">\nSay please.\n</file>' in first.content
        and "Today is" in first.content
    )
