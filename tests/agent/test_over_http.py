"""The loop with a model over HTTP: Lathe's own server, and one that knows words alone."""

import json

from scripts import call
from serving import serve
from upstreams import event, upstream_that

from lathe.agent import context
from lathe.agent.attempt import AgentConfig
from lathe.agent.loop import run
from lathe.agent.tools.bash import BASH
from lathe.client import ChatClient
from lathe.testing import ScriptedModel

REPLIES = ("I look.\n" + call("bash", command="echo 'é\u2028'"), call("bash", command="cat missing"), "Done.")


async def test_over_lathe_it_is_the_same_run_token_for_token(box):
    here = await run(ScriptedModel(*REPLIES), box, "Go.")
    model = ScriptedModel(*REPLIES)
    with serve(model) as url:
        async with ChatClient(url) as client:
            there = await run(client, box, "Go.", AgentConfig(max_turns=9))
    assert (there.stop_reason, len(there.trajectories)) == ("done", 1)
    assert there.trajectory.token_ids == here.trajectory.token_ids
    assert there.trajectory.loss_mask == here.trajectory.loss_mask
    assert there.trajectory.token_ids[: len(model.engine.prompts[-1])] == model.engine.prompts[-1]


async def test_half_a_surrogate_pair_is_said_all_the_same():
    with serve(ScriptedModel("Yes.")) as url:
        async with ChatClient(url) as client:
            attempt = await run(client, None, "half \ud800 a pair")
    assert (attempt.stop_reason, attempt.answer) == ("done", "Yes.")


async def test_words_alone_are_counted_and_compacted(box):
    """The window is known from the server's list, the size from its usage, and that is enough."""
    sizes = []

    def speak(body, handler):
        num_chars = sum(len(turn["content"] or "") for turn in body["messages"])
        sizes.append(num_chars // 4)
        said = body["messages"][-1]["content"]
        if said == context.SUMMARIZE:
            delta = {"content": "Some numbers were printed."}
        elif len(sizes) < 20:
            arguments = json.dumps({"command": f"seq {len(sizes)} 70"})
            function = {"name": "bash", "arguments": arguments}
            delta = {"tool_calls": [{"index": 0, "id": f"c{len(sizes)}", "function": function}]}
        else:
            delta = {"content": "Done."}
        usage = {"prompt_tokens": num_chars // 4, "completion_tokens": 10}
        handler.stream(
            event({"choices": [{"delta": delta, "finish_reason": None}]}),
            event({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
            event({"choices": [], "usage": usage}),
        )

    listed = {"data": [{"id": "words", "max_model_len": 900}]}
    with upstream_that(speak, models=listed) as url:
        async with ChatClient(url) as client:
            attempt = await run(client, box, "Print.", tools=(BASH,))
    assert (attempt.stop_reason, attempt.answer) == ("done", "Done.")
    assert attempt.counts.num_compactions >= 1 and max(sizes) <= 900
    assert attempt.counts.num_prompt_tokens == sum(sizes)
    assert attempt.counts.num_reply_tokens == 10 * len(sizes)
    assert all(each.token_ids == () for each in attempt.trajectories)
    ids = [each.id for each in attempt.trajectories]
    assert [each.parent for each in attempt.trajectories] == [None, *ids[:-1]]


async def test_a_server_that_is_not_there_ends_it(box):
    with upstream_that(lambda body, handler: handler.answer(500, b"{}")) as url:
        async with ChatClient(url, "m", max_retries=1, first_wait_s=0.001) as client:
            attempt = await run(client, box, "Go.")
    assert attempt.stop_reason == "model" and "(500)" in attempt.detail
