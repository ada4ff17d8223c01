"""The loop over real sandboxes: a scripted model speaks, everything else is what it is."""

import asyncio
import time
from dataclasses import replace

import pytest
from scripts import call, calls

from lathe.agent import guard
from lathe.agent.attempt import AgentConfig, Attempt
from lathe.agent.events import Ended, Nudged, ToolEnded, ToolStarted, TurnEnded, TurnStarted
from lathe.agent.loop import run
from lathe.agent.tools import NATIVE_TOOLS
from lathe.agent.tools.tool import AgentTool, Output, schema
from lathe.errors import InfrastructureError, UpstreamError
from lathe.testing import ScriptedModel
from lathe.text.chat_template import ChatTemplate
from lathe.text.tool_calls import CallFinished, Content
from lathe.types import Message, SamplingParams, Tool, ToolCall, Trajectory


def roles(attempt: Attempt) -> str:
    """The conversation's shape: s, u, a, t for system, user, assistant, tool."""
    return "".join(message.role[0] for message in attempt.trajectory.messages)


def results(attempt: Attempt) -> list[str]:
    return [message.content for message in attempt.trajectory.messages if message.role == "tool"]


async def test_a_task_is_done_and_its_tokens_are_one_line(box):
    model = ScriptedModel(
        "I look first.\n" + call("bash", command="echo 'a = 1' > a.py; cat a.py"),
        call("edit", file_path="a.py", old_string="a = 1", new_string="a = 2"),
        "I changed a to 2.",
    )
    events = []
    attempt = await run(model, box, "Make a be 2.", on_event=events.append)
    assert (attempt.stop_reason, attempt.answer) == ("done", "I changed a to 2.")
    assert await box.read("a.py") == b"a = 2\n"
    assert roles(attempt) == "suatata" and results(attempt)[0] == "a = 1"
    # Each prompt is the one before, the reply to it, and what is new: one trajectory, no token twice.
    trajectory, last = attempt.trajectory, model.engine.prompts[-1]
    assert all(last[: len(prompt)] == prompt for prompt in model.engine.prompts)
    assert trajectory.token_ids[: len(last)] == last and len(attempt.trajectories) == 1
    assert sum(trajectory.loss_mask) == attempt.counts.num_reply_tokens
    assert (attempt.counts.num_turns, attempt.counts.num_calls, attempt.counts.num_failed_calls) == (3, 2, 0)
    kinds = [type(event) for event in events if not isinstance(event, Content)]
    assert kinds.count(CallFinished) == kinds.count(ToolStarted) == kinds.count(ToolEnded) == 2
    assert kinds[0] is TurnStarted and kinds[-1] is Ended and kinds.count(TurnEnded) == 3
    diffs = [event.diff for event in events if isinstance(event, ToolEnded)]
    assert diffs[1].splitlines()[-2:] == ["-a = 1", "+a = 2"]
    turn = next(event for event in events if isinstance(event, TurnEnded))
    assert 0 < turn.first_token_s <= turn.duration_s


async def test_one_question_without_tools_or_a_sandbox():
    model = ScriptedModel("Now I will say it: 42.")
    attempt = await run(model, None, "What is it?", AgentConfig(max_turns=1))
    assert (attempt.stop_reason, attempt.answer, roles(attempt)) == ("done", "Now I will say it: 42.", "ua")
    assert attempt.trajectory.tools == ()
    config = AgentConfig(sampling=SamplingParams(max_tokens=5))
    attempt = await run(ScriptedModel("A long answer."), None, "What is it?", config)
    assert (attempt.stop_reason, attempt.answer, roles(attempt)) == ("length", "A lon", "ua")


# Calls


async def test_reading_calls_run_together_and_writing_ones_in_order(box):
    running, most, order = 0, 0, []

    def slow(name: str, kind: str) -> AgentTool:
        async def work(workspace, arguments):
            nonlocal running, most
            running += 1
            most = max(most, running)
            order.append(name + arguments["x"])
            await asyncio.sleep(0.05 if arguments["x"] == "1" else 0.0)
            running -= 1
            return Output(name + arguments["x"])

        return AgentTool(Tool(name, "", schema(("x",), x="string")), kind, work)

    tools = (slow("look", "read"), slow("change", "run"))
    for name, expected in (("look", 3), ("change", 1)):
        running = most = 0
        order.clear()
        model = ScriptedModel(calls(*(call(name, x=str(n)) for n in (1, 2, 3))), "Done.")
        attempt = await run(model, box, "Go.", tools=tools)
        assert results(attempt) == [f"{name}{n}" for n in (1, 2, 3)] == order
        assert most == expected
        ids = [each.tool_call_id for each in attempt.trajectory.messages if each.role == "tool"]
        assert ids == [each.id for each in attempt.trajectory.messages[2].tool_calls]


async def test_a_write_between_reads_is_seen_by_the_later_one(box):
    await box.write("a", "old\n")
    look = call("read", file_path="a")
    model = ScriptedModel(calls(look, call("write", file_path="a", content="new"), look), "Done.")
    attempt = await run(model, box, "Go.")
    assert results(attempt) == ["     1\told", f"Replaced {box.workdir}/a (+1 -1 lines).", "     1\tnew"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (call("reed", file_path="a"), ["no tool 'reed'", "Did you mean read?", "bash, read, write"]),
        (call("read", path="a"), ["file_path is missing (there is no path)", "string, [offset: integer]"]),
        (call("edit", file_path="a", old_string="b"), ["new_string is missing"]),
        (call("read", file_path="a", offset="soon"), ["offset must be integer, and is string"]),
        (call("todo", todos="nothing"), ["todos must be array, and is string"]),
    ],
)
async def test_a_damaged_call_is_told_what_is_right(box, said, words):
    attempt = await run(ScriptedModel(said, "Oh."), box, "Go.")
    assert attempt.stop_reason == "done" and attempt.counts.num_failed_calls == 1
    assert all(word in results(attempt)[0] for word in words), results(attempt)


async def test_what_models_add_from_other_tools_is_ignored(box):
    said = call("bash", command="echo hi", description="Says hi", timeout_s="5")
    assert results(await run(ScriptedModel(said, "Done."), box, "Go.")) == ["hi"]


async def test_three_damaged_replies_end_it(box):
    model = ScriptedModel(*(call(f"tool{n}") for n in range(9)))
    attempt = await run(model, box, "Go.")
    assert (attempt.stop_reason, attempt.counts.num_turns) == ("loop", 3) and "3 replies" in attempt.detail
    # One good call in between, and the count begins again.
    bad, good = (call(f"tool{n}") for n in range(9)), call("bash", command="echo hi")
    model = ScriptedModel(next(bad), next(bad), good, next(bad), next(bad), "I give up.")
    assert (await run(model, box, "Go.")).stop_reason == "done"


async def test_a_call_that_can_not_be_read_is_no_end(box):
    broken = "<tool_call>\n<function=bash>\n<parameter=command>\necho hi"
    attempt = await run(ScriptedModel(broken, call("bash", command="echo hi"), "Done."), box, "Go.")
    assert attempt.stop_reason == "done" and results(attempt) == ["hi"] and roles(attempt) == "suauata"
    assert attempt.trajectory.messages[3].content == guard.LEAKED
    attempt = await run(ScriptedModel(*[broken] * 5), box, "Go.")
    assert (attempt.stop_reason, attempt.counts.num_turns) == ("loop", 3)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("I run it.\n<tool_call>\n<function=bash>\n<parameter=command>\nls", True),
        ("  <function=bash>", True),
        ("ls\n</parameter>\n</function>", True),
        ("The parser looks for <tool_call> and </function> in the text.", False),
        ("Write\n```\n<tool_call>\n</tool_call>\n```\nand it is read.", False),
    ],
)
def test_leaked_calls(text, is_one):
    assert guard.has_leaked_call(text) is is_one


# Leave


async def test_each_call_needs_leave(box):
    await box.write("a", "1\n")
    asked = []

    async def approve(proposal):
        asked.append(proposal)
        return "Never run that." if proposal.kind == "run" else None

    model = ScriptedModel(
        call("edit", file_path="a", old_string="1", new_string="2"),
        call("bash", command="echo 3 > a"),
        "Done.",
    )
    events = []
    attempt = await run(model, box, "Go.", approve=approve, on_event=events.append)
    assert [proposal.kind for proposal in asked] == ["edit", "run"]
    assert asked[0].diff.endswith("-1\n+2\n") and asked[0].call.arguments["new_string"] == "2"
    assert results(attempt)[1] == "Never run that." and await box.read("a") == b"2\n"
    assert [event.denied for event in events if isinstance(event, ToolEnded)] == [False, True]


# Signs of being lost


async def test_the_same_call_with_the_same_result_is_told_and_then_stopped(box):
    events = []
    model = ScriptedModel(*[call("bash", command="cat missing")] * 9)
    attempt = await run(model, box, "Go.", on_event=events.append)
    assert (attempt.stop_reason, attempt.counts.num_turns) == ("loop", 5)
    assert [(event.why, event.text) for event in events if isinstance(event, Nudged)] == [
        ("repeats", guard.REPEATS.format(3))
    ]
    assert roles(attempt) == "su" + "atatat" + "u" + "atat"


async def test_a_circle_of_calls_is_one_too(box):
    circle = [call("bash", command="echo a"), call("bash", command="echo b"), call("read", file_path="x")]
    attempt = await run(ScriptedModel(*circle * 9), box, "Go.")
    assert (attempt.stop_reason, attempt.counts.num_turns) == ("loop", 15)


async def test_polling_whose_output_changes_is_no_loop(box):
    events = []
    model = ScriptedModel(*[call("bash", command="echo x >> log; wc -l < log")] * 8, "Ready.")
    attempt = await run(model, box, "Wait.", on_event=events.append)
    assert attempt.stop_reason == "done" and results(attempt) == [str(n) for n in range(1, 9)]
    assert not [event for event in events if isinstance(event, Nudged)]


async def test_the_same_test_run_after_each_edit_is_no_loop(box):
    steps = [
        (call("bash", command="cat a || true"), call("write", file_path="b", content=f"{n}"))
        for n in range(6)
    ]
    attempt = await run(ScriptedModel(*(s for step in steps for s in step), "Done."), box, "Go.")
    assert attempt.stop_reason == "done"


async def test_an_announced_action_is_answered_with_go_on(box):
    events = []
    model = ScriptedModel("Now I will read a.py:", call("bash", command="echo hi"), "It says hi.")
    attempt = await run(model, box, "Go.", on_event=events.append)
    assert (attempt.stop_reason, roles(attempt)) == ("done", "suauata")
    assert [event.why for event in events if isinstance(event, Nudged)] == ["announced"]
    # Said twice in a row, it is believed; and not for ever.
    assert roles(await run(ScriptedModel(*["Let me look."] * 9), box, "Go.")) == "suaua"
    step = ["Let me look.", call("bash", command="date +%N")]
    attempt = await run(ScriptedModel(*step * 9), box, "Go.")
    assert (attempt.stop_reason, attempt.counts.num_turns) == ("done", 7)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Now I will read a.py:", True),
        ("I found it. Let me fix the test.", True),
        ("First, let me look at the code", True),
        ("Next, I'll run the tests.", True),
        ("I'm going to start by reading the file", True),
        ("The file holds:\n```\na\n```", False),
        ("All tests pass. Let me know if you need more.", False),
        ("I changed `a.py` so that it works.", False),
        ("Shall I run the tests? Or will I leave it?", False),
        ("I will not change this.", False),
        ("Done. The bug was that `let me go` was misspelt.", False),
        ("", False),
    ],
)
def test_announcements(text, is_one):
    assert guard.announces(text) is is_one


async def test_empty_replies(box):
    model = ScriptedModel(None, call("bash", command="echo hi"), None, None)
    attempt = await run(model, box, "Go.")
    assert attempt.stop_reason == "done" and "empty" in attempt.detail
    assert roles(attempt) == "suauatauaa"[:4] + "at" + "aua"


async def test_replies_that_are_cut(box):
    model = ScriptedModel("x" * 50, call("bash", command="echo hi"), "Done.")
    config = AgentConfig(sampling=SamplingParams(max_tokens=40))
    attempt = await run(ScriptedModel(*["x" * 50] * 9), box, "Go.", config)
    assert (attempt.stop_reason, attempt.counts.num_turns) == ("length", 3)
    config = AgentConfig(sampling=SamplingParams(max_tokens=45))
    long = "x" * 30 + call("bash", command="echo hi")  # cut inside the call: no half call is run
    attempt = await run(ScriptedModel(long, "ok."), box, "Go.", config)
    assert attempt.stop_reason == "done" and roles(attempt) == "suaua"
    assert attempt.trajectory.messages[3].content == guard.CUT
    assert model.engine.prompts == []


# Budgets


async def test_budgets_stop_between_turns(box):
    step = [call("bash", command=f"echo {n}") for n in range(9)]
    attempt = await run(ScriptedModel(*step), box, "Go.", AgentConfig(max_turns=2))
    assert (attempt.stop_reason, attempt.counts.num_turns, results(attempt)) == ("max_turns", 2, ["0", "1"])
    attempt = await run(ScriptedModel(*step), box, "Go.", AgentConfig(max_tokens=250))
    assert (attempt.stop_reason, attempt.counts.num_reply_tokens) == ("max_tokens", 250)


async def test_time_is_up(box):
    model = ScriptedModel(calls(call("bash", command="echo 1"), call("bash", command="sleep 60")))
    started = time.monotonic()
    attempt = await run(model, box, "Go.", AgentConfig(max_time_s=1.5))
    assert time.monotonic() - started < 30
    assert attempt.stop_reason == "max_time"
    assert results(attempt) == ["1", "[the time was up before this call was done]"]
    assert "sleep" not in (await box.exec("ps ax")).stdout


# Being cut, and going on


async def test_an_interrupt_ends_the_command_and_leaves_what_can_go_on(box):
    model = ScriptedModel(
        calls(call("bash", command="echo 1"), call("bash", command="sleep 60")), "I was cut."
    )
    stop, saved = asyncio.Event(), []

    def hear(event):
        if isinstance(event, ToolStarted) and event.call.arguments["command"] == "sleep 60":
            stop.set()

    attempt = await run(model, box, "Go.", on_event=hear, interrupt=stop, save=saved.append)
    assert attempt.stop_reason == "interrupted"
    assert results(attempt) == ["1", "[interrupted before this call was done]"]
    assert "sleep" not in (await box.exec("ps ax")).stdout
    assert saved[-1] == attempt
    attempt = await run(model, box, attempt.trajectory.add(Message("user", "Well?")))
    assert (attempt.stop_reason, attempt.answer) == ("done", "I was cut.")
    assert len(attempt.trajectories) == 1 and len(attempt.trajectory.segments) == 2


async def test_an_interrupt_in_a_reply_leaves_the_turn_before(box):
    model = ScriptedModel(call("bash", command="echo 1"), "word " * 1000, delay_s=0.002)
    stop = asyncio.Event()
    num_turns = 0

    def hear(event):
        nonlocal num_turns
        num_turns += isinstance(event, TurnStarted)
        if isinstance(event, Content) and num_turns == 2:
            stop.set()

    attempt = await run(model, box, "Go.", on_event=hear, interrupt=stop)
    assert (attempt.stop_reason, roles(attempt)) == ("interrupted", "suat")
    async with asyncio.timeout(20):
        while model.engine.num_open:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_being_cancelled_saves_and_raises(box):
    model = ScriptedModel(call("bash", command="sleep 60"))
    saved, started = [], asyncio.Event()

    def hear(event):
        if isinstance(event, ToolStarted):
            started.set()

    task = asyncio.create_task(run(model, box, "Go.", on_event=hear, save=saved.append))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert saved[-1].stop_reason == "interrupted" and len(results(saved[-1])) == 1


async def test_a_killed_run_goes_on_from_every_state_it_saved(box):
    """After each state that was saved, a new model says what the old one would have said next."""
    replies = [
        "Let me look.",
        calls(call("bash", command="echo 1"), call("bash", command="echo 2")),
        call("nosuch"),
        call("bash", command="echo 3"),
        "Done.",
    ]
    saved = []
    whole = await run(ScriptedModel(*replies), box, "Go.", save=saved.append)
    assert len(saved) > 8
    for state in saved[:-1]:
        assert state.stop_reason is None
        model = ScriptedModel(*replies[state.counts.num_turns :])
        again = await run(model, box, state)
        assert (again.stop_reason, again.answer) == ("done", "Done.")
        plain = [(each.role, each.content) for each in again.trajectory.messages]
        assert plain == [(each.role, each.content) for each in whole.trajectory.messages]
        assert again.trajectory.token_ids == whole.trajectory.token_ids
        assert replace(again.counts, duration_s=0) == replace(whole.counts, duration_s=0)


async def test_budgets_count_what_was_used_before(box):
    step = [call("bash", command=f"echo {n}") for n in range(9)]
    saved = []
    await run(ScriptedModel(*step), box, "Go.", AgentConfig(max_turns=2), save=saved.append)
    attempt = await run(ScriptedModel(*step[2:]), box, saved[-2], AgentConfig(max_turns=3))
    assert (attempt.stop_reason, attempt.counts.num_turns) == ("max_turns", 3)


async def test_a_trajectory_may_end_with_an_unanswered_call(box):
    asked = Trajectory(
        (Message("user", "Go."), Message("assistant", "", (ToolCall("bash", {"command": "echo hi"}, "c1"),))),
        tuple(tool.spec for tool in NATIVE_TOOLS),
    )
    attempt = await run(ScriptedModel("Done."), box, asked)
    assert results(attempt) == ["hi"] and attempt.answer == "Done."


# Faults


async def test_a_sandbox_that_is_gone_is_no_fault_of_the_model(box):
    model = ScriptedModel(calls(call("bash", command="echo 1"), call("bash", command="echo 2")))

    class Dying:
        id, workdir = box.id, box.workdir
        num_left = 4  # git's state, the file of bash's folder, and the first command

        def __getattr__(self, name):
            async def act(*arguments, **more):
                if name == "exec":
                    self.num_left -= 2
                if self.num_left < 0:
                    raise InfrastructureError("the disk is gone")
                return await getattr(box, name)(*arguments, **more)

            return act

    attempt = await run(model, Dying(), "Go.")
    assert attempt.stop_reason == "sandbox" and "the disk is gone" in attempt.detail
    assert results(attempt) == ["1", "[the sandbox failed before this call was done]"]


async def test_a_closed_sandbox_ends_it_before_it_begins(box):
    await box.close()
    attempt = await run(ScriptedModel("Never."), box, "Go.")
    assert attempt.stop_reason == "sandbox" and "SandboxGone" in attempt.detail
    assert roles(attempt) == "su"  # enough to begin again with


async def test_a_model_that_fails_ends_it(box):
    class Failing(ScriptedModel):
        async def complete(self, *arguments, **more):
            if len(self.engine.prompts) == 1:
                raise UpstreamError("the server is down")
            return await super().complete(*arguments, **more)

    attempt = await run(Failing(call("bash", command="echo hi")), box, "Go.")
    assert (attempt.stop_reason, roles(attempt)) == ("model", "suat") and "server is down" in attempt.detail


async def test_an_engine_that_is_stopped_ends_it(box):
    model = ScriptedModel("word " * 1000, delay_s=0.001)

    def hear(event):
        if isinstance(event, Content):
            model.engine.abort_all()

    attempt = await run(model, box, "Go.", on_event=hear)
    assert (attempt.stop_reason, roles(attempt)) == ("model", "su")


async def test_a_template_that_rewrites_the_past_begins_a_new_trajectory(box):
    source = ChatTemplate.builtin().source
    counted = source.replace("{%", "{{ messages | length }}{%", 1)  # every prompt begins otherwise
    model = ScriptedModel(call("bash", command="echo hi"), "Done.", template=ChatTemplate(counted))
    attempt = await run(model, box, "Go.")
    first, second = attempt.trajectories
    assert attempt.stop_reason == "done" and second.parent == first.id and first.id != second.id
    assert [len(each.segments) for each in attempt.trajectories] == [1, 1]
    assert second.token_ids[: len(model.engine.prompts[1])] == model.engine.prompts[1]
    assert [message.role for message in second.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
