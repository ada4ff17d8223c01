"""When the window fills: what is kept, what is dropped, and how the run goes on."""

import pytest
from scripts import call

from lathe.agent import context
from lathe.agent.attempt import AgentConfig
from lathe.agent.events import Compacted
from lathe.agent.loop import run
from lathe.agent.tools import NATIVE_TOOLS
from lathe.agent.tools.bash import BASH
from lathe.errors import PromptTooLong
from lathe.testing import ScriptedModel
from lathe.text.chat_template import ChatTemplate
from lathe.types import Message, ToolCall, Trajectory

SUMMARY = "The user wants all numbers. I printed some; more are left."


class Summarizer:
    """Speaks its replies one after the other, and a summary where it is asked for one."""

    def __init__(self, *replies: str, summary: str = SUMMARY):
        self.replies = list(replies)
        self.summary = summary
        self.num_asked = 0

    def __call__(self, prompt: str) -> str | None:
        if context.SUMMARIZE in prompt:
            self.num_asked += 1
            return self.summary
        return self.replies.pop(0) if self.replies else None


def printing(num_chars: int, count: int) -> list[str]:
    return [call("bash", command=f"printf 'x%.0s' $(seq {num_chars}); echo {n}") for n in range(count)]


def check_pairs(messages) -> None:
    """Every call has its result, right behind it, and no result stands alone."""
    waiting: list[str] = []
    for message in messages:
        if message.role == "tool":
            assert message.tool_call_id == waiting.pop(0)
        else:
            assert not waiting
            waiting = [each.id for each in message.tool_calls]
    assert not waiting


async def test_a_summary_begins_a_new_trajectory(box):
    script = Summarizer(*printing(350, 16), "That is all.")
    model = ScriptedModel(answer=script, max_context=9000)
    events = []
    attempt = await run(model, box, "Print all numbers.", tools=(BASH,), on_event=events.append)
    assert (attempt.stop_reason, attempt.answer) == ("done", "That is all.")
    compactions = [event for event in events if isinstance(event, Compacted)]
    assert len(compactions) == attempt.counts.num_compactions == script.num_asked >= 1
    assert len(attempt.trajectories) == 1 + len(compactions)
    for before, after in zip(attempt.trajectories, attempt.trajectories[1:], strict=False):
        assert after.parent == before.id
        assert before.messages[-2:] == (Message("user", context.SUMMARIZE), Message("assistant", SUMMARY))
        assert after.messages[:2] == before.messages[:2]  # the system prompt and the task
        assert after.messages[2] == Message("user", context.SUMMED_UP + SUMMARY)
        assert after.messages[3].role == "assistant" and after.messages[3] in before.messages
        check_pairs(after.messages)
        assert not any(after.loss_mask[: after.segments[0].start])
    # Each sampled token is marked once, the summary's in the trajectory that was summed up.
    assert sum(sum(each.loss_mask) for each in attempt.trajectories) == attempt.counts.num_reply_tokens
    for event in compactions:
        assert event.num_tokens_after < event.num_tokens_before <= 9000
        assert event.num_tokens_before >= 0.8 * 9000
    # Nothing was printed twice, nothing was lost.
    seen = {m.content for each in attempt.trajectories for m in each.messages if m.role == "tool"}
    assert len(seen) == 16


async def test_dropping_old_results_may_be_enough(box):
    script = Summarizer(*printing(2600, 4), "Done.")
    model = ScriptedModel(answer=script, max_context=16_000)
    attempt = await run(model, box, "Print.", tools=(BASH,))
    assert (attempt.stop_reason, script.num_asked) == ("done", 0)
    before, after = attempt.trajectories
    assert after.parent == before.id and after.messages[:2] == before.messages[:2]
    outputs = [message.content for message in after.messages if message.role == "tool"]
    assert "2601 characters was dropped" in outputs[0] and outputs[-1] == "x" * 2600 + "3"
    check_pairs(after.messages)


async def test_a_window_that_holds_not_even_the_task(box):
    model = ScriptedModel(answer=Summarizer("Never."), max_context=2000)
    attempt = await run(model, box, "x" * 3000, tools=(BASH,))
    assert attempt.stop_reason == "context" and attempt.counts.num_turns == 0
    assert attempt.trajectory.messages[-1].role == "user"


async def test_a_model_that_gives_no_summary(box):
    model = ScriptedModel(answer=Summarizer(*printing(350, 16), summary=""), max_context=9000)
    attempt = await run(model, box, "Print.", tools=(BASH,))
    assert attempt.stop_reason == "context" and "no summary" in attempt.detail
    check_pairs(attempt.trajectory.messages)


async def test_the_model_knows_its_window_better_than_we(box):
    """What it refuses is compacted once; the numbers in its refusal count from then on."""
    script = Summarizer(*printing(350, 16), "Done.")
    model = ScriptedModel(answer=script, max_context=9000)
    attempt = await run(model, box, "Print.", AgentConfig(max_context=1_000_000), tools=(BASH,))
    assert attempt.stop_reason == "done" and script.num_asked >= 1


async def test_no_room_for_the_request_for_a_summary(box):
    """Then it is asked for behind the conversation without its old results."""
    script = Summarizer(*printing(900, 6), *printing(120, 20), "Done.")
    model = ScriptedModel(answer=script, max_context=9000)
    attempt = await run(model, box, "Print.", AgentConfig(compact_at=0.97), tools=(BASH,))
    assert attempt.stop_reason == "done" and attempt.counts.num_compactions >= 1
    ids = [each.id for each in attempt.trajectories]
    assert [each.parent for each in attempt.trajectories] == [None, *ids[:-1]]


async def test_an_estimate_that_is_wrong_is_no_loop(box):
    class Stubborn(ScriptedModel):
        async def complete(self, trajectory, sampling=None, *, on_event=None):
            if context.SUMMARIZE in trajectory.messages[-1].content:
                return await super().complete(trajectory, sampling, on_event=on_event)
            raise PromptTooLong(9999, 9000)

    attempt = await run(Stubborn(answer=Summarizer(), max_context=9000), box, "Print.", tools=(BASH,))
    assert attempt.stop_reason == "context" and attempt.counts.num_compactions == 1


async def test_a_template_that_rewrites_the_past_is_summed_up_as_well(box):
    counted = ChatTemplate.builtin().source.replace("{%", "{{ messages | length }}{%", 1)
    script = Summarizer(*printing(350, 16), "Done.")
    model = ScriptedModel(answer=script, max_context=9000, template=ChatTemplate(counted))
    attempt = await run(model, box, "Print.", tools=(BASH,))
    assert attempt.stop_reason == "done" and script.num_asked >= 1
    ids = [each.id for each in attempt.trajectories]
    assert [each.parent for each in attempt.trajectories] == [None, *ids[:-1]]
    assert sum(sum(each.loss_mask) for each in attempt.trajectories) == attempt.counts.num_reply_tokens


async def test_a_resumed_run_compacts_as_well(box):
    saved = []
    script = Summarizer(*printing(350, 16), "Done.")
    config = AgentConfig(max_context=9000)
    await run(ScriptedModel(answer=script), box, "Print.", config, tools=(BASH,), save=saved.append)
    state = next(each for each in saved if each.counts.num_turns == 5)
    again = Summarizer(*printing(350, 16)[5:], "Done.")
    attempt = await run(ScriptedModel(answer=again), box, state, config, tools=(BASH,))
    assert attempt.stop_reason == "done" and again.num_asked == script.num_asked


# Which messages stay


def turns(*shape: str) -> tuple[Message, ...]:
    """s, u, or a number of calls with their results."""
    messages: list[Message] = []
    for place, kind in enumerate(shape):
        if kind.isdigit():
            ids = [f"{place}.{n}" for n in range(int(kind))]
            messages.append(Message("assistant", "x" * 30, tuple(ToolCall("f", {}, each) for each in ids)))
            messages += [Message("tool", "y" * 50, tool_call_id=each) for each in ids]
        else:
            messages.append(Message("system" if kind == "s" else "user", f"{kind}{place}"))
    return tuple(messages)


@pytest.mark.parametrize("room", [0, 100, 200, 400, 800, 10_000])
def test_pairs_are_never_split(room):
    messages = turns("s", "u", "1", "2", "u", "3", "1", "1", "u", "2")
    kept = context.last_turns(messages, room)
    check_pairs(messages[kept:])
    assert 2 <= kept < len(messages)
    assert context.num_chars(messages[kept:]) <= max(room, context.num_chars(messages[-3:]))
    summed = context.summed_up(messages, SUMMARY, kept)
    check_pairs(summed)
    assert summed[:2] == messages[:2] and messages[-4] in summed  # what the user asked last


def test_a_conversation_that_only_began():
    messages = turns("s", "u")
    assert context.last_turns(messages, 100) == 2
    assert context.summed_up(messages, SUMMARY, 2)[:2] == messages


def test_how_long_a_conversation_is():
    trajectory = Trajectory(turns("s", "u", "1"), tuple(tool.spec for tool in NATIVE_TOOLS))
    size = context.num_chars(trajectory.messages, trajectory.tools)
    assert context.num_tokens(trajectory) == round(size / 3)
    spoken = context.num_chars(trajectory.messages[:3], trajectory.tools)
    rest = context.num_chars(trajectory.messages[3:])
    assert context.num_tokens(trajectory, known=2 * spoken) == 2 * spoken + 2 * rest  # two tokens a character
