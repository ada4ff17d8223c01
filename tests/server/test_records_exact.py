"""The promise: the tokens that the agent saw are those on the record, with the probabilities that a trainer
computes. Real engine, real sockets, official clients; random weights, and SmolLM2's."""

import copy
import json

import anthropic
import openai
import pytest
import torch
from serving import serve

from lathe import LLM
from lathe.engine.engine import EngineConfig
from lathe.engine.runner import invariant_experts
from lathe.jsonl import read_rollouts
from lathe.kernels.attention import causal_attention
from lathe.kernels.cpu.exact import Exact
from lathe.kernels.cpu.library import load
from lathe.kernels.experts import grouped_experts
from lathe.kernels.invariant_attention import invariant_causal_attention
from lathe.model.linear import INVARIANT, QUICK
from lathe.model.transformer import Transformer

READ_FILE = {
    "name": "read_file",
    "description": "Reads a file.",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
}
FILES = {"a.py": "print(1)", "b.py": "print(2)", "c.py": "print(3)"}
TASK = f"Read {', '.join(FILES)}, d.py"  # after three calls that it did not make, SmolLM2 makes the fourth
NUM_TURNS = 3


class Spy:
    """What the engine is asked and what it samples, beside the record."""

    def __init__(self, engine, monkeypatch):
        self.turns: list[tuple[tuple[int, ...], list]] = []
        submit = engine.submit

        def listen(prompt, sampling, report):
            tokens: list = []
            self.turns.append((prompt, tokens))

            def report_both(sampled):
                if sampled.token is not None:
                    tokens.append(sampled.token)
                report(sampled)

            return submit(prompt, sampling, report_both)

        monkeypatch.setattr(engine, "submit", listen)


@torch.inference_mode()
def fresh_logprobs(
    model: Transformer, token_ids: tuple[int, ...], *, deterministic: bool = False
) -> torch.Tensor:
    """The log-probability of each token after the first, as a trainer computes it: one pass over the whole
    text, without a cache or a server."""
    ids = torch.tensor(token_ids)
    library = load()
    if deterministic and library is not None:
        exact = Exact(library)
        positions = torch.arange(len(ids) - 1)
        hidden = model(ids[:-1], positions, exact.attend([len(positions)]), exact.run_experts, exact)
        return exact.logprobs(model.logits(hidden, exact), ids[1:])
    attention = invariant_causal_attention if deterministic else causal_attention
    arithmetic = INVARIANT if deterministic else QUICK
    hidden = model(
        ids[:-1],
        torch.arange(len(ids) - 1),
        lambda layer, q, k, v: attention(q, k, v, [len(q)]),
        invariant_experts if deterministic else grouped_experts,
        arithmetic,
    )
    logits = model.logits(hidden, arithmetic)
    return torch.stack(
        [row[token_id] - row.logsumexp(-1) for row, token_id in zip(logits, ids[1:], strict=True)]
    )


def chat(url: str, max_tokens: int, **extra) -> None:
    tool = {"type": "function", "function": READ_FILE}
    talk = [{"role": "user", "content": TASK}]
    for path, text in FILES.items():
        function = {"name": "read_file", "arguments": json.dumps({"path": path})}
        talk.append(
            {"role": "assistant", "tool_calls": [{"id": path, "type": "function", "function": function}]}
        )
        talk.append({"role": "tool", "tool_call_id": path, "content": text})
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        for _ in range(NUM_TURNS):
            reply = client.chat.completions.create(
                model="m", messages=talk, tools=[tool], max_tokens=max_tokens, extra_body=extra
            )
            message = reply.choices[0].message
            talk.append(message)
            for call in message.tool_calls or ():
                talk.append({"role": "tool", "tool_call_id": call.id, "content": "print(4)"})
            if not message.tool_calls:
                talk.append({"role": "user", "content": "What do they print?"})


def responses(url: str, max_tokens: int, **extra) -> None:
    tool = {"type": "function", **READ_FILE}
    items = [{"role": "user", "content": TASK}]
    for path, text in FILES.items():
        arguments = json.dumps({"path": path})
        items.append({"type": "function_call", "call_id": path, "name": "read_file", "arguments": arguments})
        items.append({"type": "function_call_output", "call_id": path, "output": text})
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        for _ in range(NUM_TURNS):
            reply = client.responses.create(
                model="m", input=items, tools=[tool], max_output_tokens=max_tokens, extra_body=extra
            )
            items += [item.model_dump(exclude_none=True) for item in reply.output]
            calls = [item for item in reply.output if item.type == "function_call"]
            for call in calls:
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": "print(4)"})
            if not calls:
                items.append({"role": "user", "content": "What do they print?"})


def messages(url: str, max_tokens: int, **extra) -> None:
    tool = {
        "name": READ_FILE["name"],
        "description": READ_FILE["description"],
        "input_schema": READ_FILE["parameters"],
    }
    talk = [{"role": "user", "content": TASK}]
    for path, text in FILES.items():
        call = {"type": "tool_use", "id": path, "name": "read_file", "input": {"path": path}}
        talk.append({"role": "assistant", "content": [call]})
        talk.append(
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": path, "content": text}]}
        )
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client:
        for _ in range(NUM_TURNS):
            reply = client.messages.create(
                model="m", messages=talk, tools=[tool], max_tokens=max_tokens, extra_body=extra
            )
            calls = [block for block in reply.content if block.type == "tool_use"]
            results = [
                {"type": "tool_result", "tool_use_id": call.id, "content": "print(4)"} for call in calls
            ]
            talk.append({"role": "assistant", "content": reply.content})
            talk.append({"role": "user", "content": results or "What do they print?"})


def completions(url: str, max_tokens: int, **extra) -> None:
    """Raw text as ids: an agent that writes its prompts itself."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        ids = [10, 20, 30]
        for _ in range(NUM_TURNS):
            body = {**extra, "return_token_ids": True}
            reply = client.completions.create(model="m", prompt=ids, max_tokens=max_tokens, extra_body=body)
            choice = reply.choices[0]
            ids += [*choice.model_extra["token_ids"], 40, 50]


DIALECTS = [chat, responses, messages, completions]


def check_exact(llm: LLM, spy: Spy, folder, *, deterministic: bool = False) -> list[str]:
    """The record against the engine and against a fresh pass. Returns the finish reasons."""
    (rollout,) = read_rollouts(folder)
    (trajectory,) = rollout.trajectories
    assert len(trajectory.segments) == len(spy.turns) == NUM_TURNS
    before: tuple[int, ...] = ()
    for segment, (prompt, tokens) in zip(trajectory.segments, spy.turns, strict=True):
        assert prompt[: len(before)] == before, "a turn's prompt begins with all that was seen before it"
        before = prompt + tuple(token.token_id for token in tokens)
        assert trajectory.token_ids[: segment.stop] == before
        assert trajectory.logprobs[segment.start : segment.stop] == tuple(token.logprob for token in tokens)
        assert all(trajectory.loss_mask[segment.start : segment.stop])
    assert len(trajectory.token_ids) == len(before)
    assert sum(trajectory.loss_mask) == sum(len(tokens) for _, tokens in spy.turns)
    marked = torch.tensor(trajectory.loss_mask)[1:]
    recorded = torch.tensor(trajectory.logprobs)[1:][marked]
    fresh = fresh_logprobs(llm.engine.runner.model, trajectory.token_ids, deterministic=deterministic)[marked]
    if deterministic:
        assert recorded.tolist() == fresh.tolist()
    else:
        assert (recorded - fresh).abs().max() < 1e-3  # float32, and up to -20 for an unlikely token
    return [segment.finish_reason for segment in trajectory.segments]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_random_weights(llm, tmp_path, monkeypatch, dialect):
    """Random bytes are mostly no text: what the client sends back could never be tokenized to them."""
    spy = Spy(llm.engine, monkeypatch)
    with serve(llm, record=tmp_path) as url:
        dialect(url, max_tokens=40, temperature=0.8)
    check_exact(llm, spy, tmp_path)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_deterministic_replies_are_the_trainers_to_the_bit(llm, tmp_path, monkeypatch, dialect):
    spy = Spy(llm.engine, monkeypatch)
    with serve(llm, record=tmp_path) as url:
        dialect(url, max_tokens=40, temperature=0.8, deterministic=True)
    check_exact(llm, spy, tmp_path, deterministic=True)


def test_weights_that_change_within_a_reply(llm, tmp_path):
    model = llm.engine.runner.model
    old = copy.deepcopy(model)
    torch.manual_seed(1)
    new = Transformer(model.config)
    body = {"model": "m", "messages": [{"role": "user", "content": TASK}], "max_tokens": 1500, "stream": True}
    with serve(llm, record=tmp_path) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        for place, _ in enumerate(client.chat.completions.create(**body, extra_body={"ignore_eos": True})):
            if place == 5:
                llm.engine.update_weights(new.state_dict(), running="continue")
    (trajectory,) = next(iter(read_rollouts(tmp_path))).trajectories
    (segment,) = trajectory.segments
    ((changed_at, version),) = segment.weights_updates
    assert trajectory.weights_versions == (0, 1) == (segment.weights_version, version)
    assert segment.start < changed_at < segment.stop
    for weights, span in ((old, slice(segment.start, changed_at)), (new, slice(changed_at, segment.stop))):
        fresh = torch.cat([torch.zeros(1), fresh_logprobs(weights, trajectory.token_ids)])[span]
        assert (torch.tensor(trajectory.logprobs)[span] - fresh).abs().max() < 1e-3


# The others take as long, and differ from the first in nothing that random weights don't show.
@pytest.mark.parametrize(
    "dialect", [chat, *(pytest.param(each, marks=pytest.mark.slow) for each in DIALECTS[1:])]
)
@pytest.mark.timeout(300)
def test_smollm2(tmp_path, monkeypatch, dialect):
    """In float32, as a trainer's forward is: kernels round what they multiply quantized weights by."""
    llm = LLM("smollm2", quantize=None, engine_config=EngineConfig(kv_memory_bytes=2**29))
    spy = Spy(llm.engine, monkeypatch)
    with serve(llm, record=tmp_path) as url:
        dialect(url, max_tokens=40, temperature=0)
    reasons = check_exact(llm, spy, tmp_path)
    assert dialect is completions or reasons[0] == "tool_calls"
