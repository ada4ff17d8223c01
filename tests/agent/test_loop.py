"""The loop over real sandboxes: a scripted model speaks, everything else is what it is."""

from scripts import call

from lathe.agent.events import Ended, ToolEnded, ToolStarted, TurnEnded, TurnStarted
from lathe.agent.loop import run
from lathe.testing import ScriptedModel
from lathe.text.tool_calls import CallFinished, Content


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
    trajectory = attempt.trajectory
    assert [m.role for m in trajectory.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert trajectory.messages[3].content == "a = 1"
    # Each prompt is the one before, the reply to it, and what is new: one trajectory, no token twice.
    last = model.engine.prompts[-1]
    assert all(last[: len(prompt)] == prompt for prompt in model.engine.prompts)
    assert trajectory.token_ids[: len(last)] == last
    assert sum(trajectory.loss_mask) == attempt.counts.num_reply_tokens
    assert (attempt.counts.num_turns, attempt.counts.num_calls) == (3, 2)
    kinds = [type(event) for event in events if not isinstance(event, Content)]
    assert kinds.count(CallFinished) == kinds.count(ToolStarted) == kinds.count(ToolEnded) == 2
    assert kinds[0] is TurnStarted and kinds[-1] is Ended and kinds.count(TurnEnded) == 3
    assert [event.diff for event in events if isinstance(event, ToolEnded)][1].splitlines()[-2:] == [
        "-a = 1",
        "+a = 2",
    ]
