import itertools
import json
import logging
import math
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.errors import RecordError
from lathe.jsonl import (
    Continues,
    Part,
    from_line,
    part_from_line,
    part_to_line,
    read_rollouts,
    to_line,
    write_rollouts,
)
from lathe.types import (
    Completion,
    Grammar,
    Message,
    Rollout,
    SamplingParams,
    Segment,
    TokenLogprob,
    Tool,
    ToolCall,
    Trajectory,
    Verdict,
)

# Any code point, lone surrogates too. A high one before a low one is the character they stand for, in JSON.
texts = st.text(st.characters(codec=None), max_size=12).map(
    lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
floats = st.floats(allow_nan=False)
data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, data, max_size=3)
maybe_texts = st.none() | texts
calls = st.builds(ToolCall, name=texts, arguments=objects, id=texts)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
    content=texts,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    tool_call_id=maybe_texts,
    name=maybe_texts,
    reasoning=maybe_texts,
)
samplings = st.builds(
    SamplingParams,
    temperature=floats,
    seed=st.none() | st.integers(),
    stop=st.lists(texts, max_size=2).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 9), max_size=2).map(tuple),
    grammar=st.none() | st.builds(Grammar, kind=st.just("json_schema"), source=texts),
    deterministic=st.booleans(),
)
segments = st.builds(
    Segment,
    start=st.integers(0, 9),
    stop=st.integers(0, 9),
    finish_reason=st.sampled_from(["stop", "length", "tool_calls", "abort"]),
    weights_version=st.integers(0, 9),
    weights_updates=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=2).map(tuple),
    sampling=st.none() | samplings,
)


@st.composite
def trajectories(draw) -> Trajectory:
    tokens = draw(st.lists(st.tuples(st.integers(0, 2**31), st.booleans(), floats), max_size=6))
    return Trajectory(
        messages=draw(st.lists(messages, max_size=3).map(tuple)),
        tools=draw(st.lists(st.builds(Tool, texts, texts, st.none() | objects), max_size=2).map(tuple)),
        token_ids=tuple(token_id for token_id, _, _ in tokens),
        loss_mask=tuple(mask for _, mask, _ in tokens),
        logprobs=tuple(logprob for _, _, logprob in tokens),
        segments=draw(st.lists(segments, max_size=2).map(tuple)),
        id=draw(texts),
        parent=draw(maybe_texts),
        template_kwargs=draw(objects),
    )


rollouts = st.builds(
    Rollout,
    trajectories=st.lists(trajectories(), max_size=2, unique_by=lambda t: t.id).map(tuple),
    stop_reason=maybe_texts,
    verdict=st.none()
    | st.builds(Verdict, reward=floats, evidence=objects)
    | st.builds(Verdict, reason=texts, evidence=objects),
    task=maybe_texts,
    model=maybe_texts,
    id=texts,
    info=objects,
)


@given(rollouts)
def test_a_line_says_the_rollout(rollout):
    line = to_line(rollout)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    json.loads(line.decode(), parse_constant=pytest.fail)  # strict JSON, in UTF-8
    back = from_line(line)
    assert back == rollout
    for before, after in zip(rollout.trajectories, back.trajectories, strict=True):
        assert [struct.pack("d", p) for p in before.logprobs] == [struct.pack("d", p) for p in after.logprobs]
        assert all(type(mask) is bool for mask in after.loss_mask)


def test_nan_is_carried_where_a_number_is_expected():
    rollout = Rollout((Trajectory((), token_ids=(1,), loss_mask=(True,), logprobs=(math.nan,)),))
    assert math.isnan(from_line(to_line(rollout)).trajectories[0].logprobs[0])
    with pytest.raises(ValueError, match="JSON"):
        to_line(Rollout((), info={"x": math.nan}))


def test_a_row_for_sft_is_a_line_of_messages():
    line = b'{"trajectories": [{"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant"}]}]}'
    (trajectory,) = from_line(line).trajectories
    assert trajectory.messages == (Message("user", "Hi."), Message("assistant"))
    assert trajectory.token_ids == ()


def talk(num_turns: int) -> list[Trajectory]:
    """A conversation as it stands after each turn."""
    states = [Trajectory((Message("user", "0"),), tools=(Tool("ls"),), id="t", parent="p")]
    for turn in range(num_turns):
        before = states[-1]
        completion = Completion(
            message=Message("assistant", f"answer {turn}"),
            prompt_token_ids=(*before.token_ids, turn),
            token_ids=(100 + turn, 200),
            logprobs=(TokenLogprob(100 + turn, -0.1 * turn), TokenLogprob(200, -1 / 3)),
            finish_reason="stop",
            weights_version=turn,
        )
        answered = before.extend(completion, SamplingParams(temperature=0.5))
        states.append(answered)
        states[-1] = answered.add(Message("user", "more")) if turn < num_turns - 1 else answered
    return states


def parts_of(states: list[Trajectory], rollout_id: str = "r") -> list[bytes]:
    """The lines that a recorder writes while the conversation grows."""
    lines = []
    for number, (before, after) in enumerate(itertools.pairwise(states)):
        first = number == 0
        new = after if first else replace(
            Trajectory((), id="t"),
            messages=after.messages[len(before.messages) :],
            **{name: getattr(after, name)[len(getattr(before, name)) :]
               for name in ("token_ids", "loss_mask", "logprobs", "segments")},
        )  # fmt: skip
        continues = {} if first else {"t": Continues(len(before.messages), len(before.token_ids))}
        info = {"session": "s"} if first else {}
        rollout = Rollout((new,), stop_reason=f"turn {number}", id=rollout_id, info=info)
        lines.append(part_to_line(Part(rollout, number, continues)))
    return lines


def test_parts_are_joined(tmp_path):
    states = talk(4)
    path = tmp_path / "r.jsonl"
    whole = Rollout((Trajectory((Message("user", "hi"),)),), id="whole")
    path.write_bytes(b"".join([*parts_of(states)[:2], to_line(whole), b"\n", *parts_of(states)[2:]]))
    first, joined = read_rollouts(path)
    assert first == whole
    assert joined == Rollout((states[-1],), stop_reason="turn 3", id="r", info={"session": "s"})
    assert joined.trajectories[0].weights_versions == (0, 1, 2, 3)


def test_a_turn_costs_only_what_is_new():
    lines = parts_of(talk(200))
    assert max(map(len, lines[1:])) < 2 * min(map(len, lines[1:]))


@pytest.mark.parametrize("cut", [1, 30, -2, -1])
def test_a_torn_last_line_is_reported_and_skipped(tmp_path, caplog, cut):
    path = tmp_path / "r.jsonl"
    states = talk(3)
    *whole, last = parts_of(states)
    path.write_bytes(b"".join(whole) + last[:cut])
    with caplog.at_level(logging.WARNING, logger="lathe.jsonl"):
        (rollout,) = read_rollouts(tmp_path)
    if cut == -1:  # only the newline is missing: nothing is lost
        assert rollout.trajectories == (states[3],)
        assert not caplog.records
    else:
        assert rollout.stop_reason == "turn 1"
        assert f"{path}, line 3" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2: Expecting property name"),
        (b"[]", "no JSON object with trajectories"),
        (b'{"trajectories": [], "reward": 1}', "reward: Rollout has no such field"),
        (b'{"trajectories": [{}]}', "trajectories.0.messages: missing"),
        (b'{"trajectories": [{"messages": [{"role": "wizard"}]}]}', "role: 'wizard' is none of"),
        (b'{"trajectories": [{"messages": [], "token_ids": [1]}]}', "0: token_ids, loss_mask and"),
        (b'{"trajectories": [{"messages": [], "token_ids": [1, true]}]}', "trajectories.0.token_ids.1: True"),
        (b'{"trajectories": [{"messages": [], "loss_mask": [2]}]}', "loss_mask.0: 2 is no true"),
        (b'{"trajectories": [{"messages": [], "logprobs": ["x"]}]}', "logprobs.0: 'x' is no num"),
        (b'{"trajectories": [], "verdict": {}}', "verdict: a verdict has either a reward"),
        (b'{"trajectories": [], "id": 3}', "id: 3 is no text"),
        (b'{"trajectories": [], "part": 1}', "part: 1, but 0 is next"),
        (b'{"trajectories": [{"messages": [], "continues": {}}]}', "continues.num_messages: missing"),
        (b'\xff{"trajectories": []}', "line 2: "),
        (b'{"trajectories": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 2: "),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = tmp_path / "damaged.jsonl"
    path.write_bytes(to_line(Rollout(())) + line + b"\n" + to_line(Rollout(())))
    reading = read_rollouts(path)
    next(reading)
    with pytest.raises(RecordError, match=r"damaged\.jsonl, line 2: ") as caught:
        next(reading)
    assert message in str(caught.value)


def test_a_part_that_is_missing_is_noticed(tmp_path):
    lines = parts_of(talk(4))
    for chosen, message in (((0, 2), "2, but 1 is next"), ((1,), "1, but 0 is next"), ((0, 0), "0, but 1")):
        (tmp_path / "r.jsonl").write_bytes(b"".join(lines[place] for place in chosen))
        with pytest.raises(RecordError, match=message):
            list(read_rollouts(tmp_path))
    with pytest.raises(ValueError, match="read its file"):
        from_line(lines[0])
    assert part_from_line(lines[2]).continues == {"t": Continues(5, 6)}


def test_a_folder_is_read_file_by_file(tmp_path):
    written = [Rollout((), id=str(place)) for place in range(3)]
    (tmp_path / "deep").mkdir()
    write_rollouts(tmp_path / "a.jsonl", written[:1])
    write_rollouts(tmp_path / "b.jsonl", [])
    write_rollouts(tmp_path / "deep" / "c.jsonl", written[1:])
    (tmp_path / "notes.txt").write_text("no rollout")
    assert list(read_rollouts(tmp_path)) == written
    with pytest.raises(RecordError, match=r"nowhere\.jsonl does not exist"):
        list(read_rollouts(tmp_path / "nowhere.jsonl"))
