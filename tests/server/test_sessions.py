import json
import resource
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.jsonl import read_rollouts
from lathe.server.recorder import Recorder, append
from lathe.server.service import Turn
from lathe.server.sessions import Sessions, reply_keys, session_hint
from lathe.types import Completion, Message, SamplingParams, TokenLogprob, Tool, ToolCall, Trajectory

# The client's name for its session

UUID = "0a1b2c3d-0000-4000-8000-123456789abc"


@pytest.mark.parametrize(
    ("headers", "body", "hint"),
    [
        ({}, {}, None),
        ({}, None, None),
        ({}, {"user": "ann", "metadata": None, "prompt_cache_key": ""}, None),
        ({"x-session-id": "a"}, {"prompt_cache_key": "b"}, "a"),
        ({}, {"prompt_cache_key": "b", "metadata": {"sessionId": "c"}}, "c"),
        ({}, {"prompt_cache_key": "b", "metadata": {"user_id": "ann"}}, "b"),
        ({}, {"metadata": {"user_id": f"user_0123_account__session_{UUID}"}}, UUID),
        ({}, {"metadata": {"user_id": json.dumps({"device_id": "d", "session_id": UUID})}}, UUID),
        ({}, {"metadata": {"session_id": 7}, "prompt_cache_key": ["x"]}, None),
    ],
)
def test_session_hints(headers, body, hint):
    assert session_hint(headers, body) == hint


# When replies are the same


def key_of(*messages: Message, session: str | None = None) -> bytes:
    return list(reply_keys(messages, session))[-1][1]


USER = Message("user", "Hi.")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"x": 1.0}, {"x": 1}),
        ({"x": -0.0, "y": True}, {"y": True, "x": 0}),
        ({"x": [1, {"a": 2}]}, {"x": [1.0, {"a": 2.0}]}),
        ({"x": 2**60}, {"x": 2**60 + 1}),  # JavaScript's numbers have 53 bits
        ({"x": 10**400}, {"x": 10**400}),
    ],
)
def test_arguments_survive_javascript(ours, theirs):
    keys = [key_of(USER, Message("assistant", "", (ToolCall("f", each),))) for each in (ours, theirs)]
    assert keys[0] == keys[1]


def test_what_is_not_the_same():
    call = ToolCall("f", {"x": 1})
    reply = Message("assistant", "Yes.", (call,))
    others = [
        (USER, Message("assistant", "No.", (call,))),
        (USER, Message("assistant", "Yes.")),
        (USER, Message("assistant", "Yes.", (call, call))),
        (USER, Message("assistant", "Yes.", (ToolCall("g", {"x": 1}),))),
        (USER, Message("assistant", "Yes.", (ToolCall("f", {"x": True}),))),
        (USER, Message("assistant", "Yes.", (ToolCall("f", {"x": "1"}),))),
        (Message("user", "Hi. "), reply),
        (Message("system", "Hi."), reply),
        (USER, USER, reply),
    ]
    keys = {key_of(*messages) for messages in others} | {key_of(USER, reply, session="s")}
    assert len(keys) == len(others) + 1
    assert key_of(USER, reply) not in keys


# Random trees of conversations, recorded and read back


class Played:
    """Serves replies without a model: a message is encoded as its words' hashes, a reply is two new ids."""

    def __init__(self, folder, max_tokens: int):
        self.sessions = Sessions(max_tokens)
        self.recorder = Recorder(folder, model="m", sessions=self.sessions)
        self.num_sampled = 0
        self.next_id = 1000

    def encode(self, trajectory: Trajectory) -> tuple[int, ...]:
        """Exact ids, then what is new. Without ids, a reply is spelled in another way than it was drawn."""
        start, ids = 0, trajectory.token_ids
        if ids:
            start = 1 + max(i for i, m in enumerate(trajectory.messages) if m.role == "assistant")
        new = [200 + len(message.content) for message in trajectory.messages[start:]]
        return (*ids, *([len(trajectory.tools)] if not ids else []), *new)

    def answer(self, messages: tuple[Message, ...], tools, session, finish: str) -> Message:
        asked, prompt = self.recorder.prepare(Trajectory(messages, tools), session, self.encode)
        self.next_id += 2
        ids = (self.next_id, self.next_id + 1)
        message = Message("assistant", f"reply {self.next_id}")
        tokens = tuple(TokenLogprob(token_id, -1.0) for token_id in ids)
        completion = Completion(message, prompt, ids, tokens, finish)
        self.recorder.record(
            Turn("chat", asked, prompt, SamplingParams(), session=session), completion, SamplingParams()
        )
        self.num_sampled += 2
        return message


step = st.tuples(
    st.integers(0, 30),  # which of the states so far goes on
    st.sampled_from(["go on", "go on", "edit", "begin", "again"]),
    st.sampled_from([None, None, "s1", "s2"]),
    st.integers(0, 1),  # tools
    st.sampled_from(["stop", "abort"]),
)


@given(st.lists(step, max_size=20), st.sampled_from([15, 60, 10_000]))
def test_every_sampled_token_is_on_the_record_once(tmp_path_factory, steps, max_tokens):
    folder = tmp_path_factory.mktemp("records")
    played = Played(folder, max_tokens)
    states: list[tuple[Message, ...]] = [(USER,)]
    for which, action, session, num_tools, finish in steps:
        messages = states[which % len(states)]
        if action == "begin":
            messages = (Message("user", f"begin {which}"),)
        elif action == "edit" and len(messages) > 2:
            messages = (*messages[:1], Message("assistant", "edited"), *messages[2:])
        elif action == "again":
            messages = messages[:-2] or messages
        message = played.answer(messages, (Tool("t"),) * num_tools, session, finish)
        states.append((*messages, message, Message("user", "and?")))
        assert played.sessions.num_tokens <= max(max_tokens, len(messages) * 3)
    rollouts = list(read_rollouts(folder))
    trajectories = [trajectory for rollout in rollouts for trajectory in rollout.trajectories]
    marked = [
        token_id
        for trajectory in trajectories
        for token_id, mask in zip(trajectory.token_ids, trajectory.loss_mask, strict=True)
        if mask
    ]
    assert len(marked) == len(set(marked)) == played.num_sampled
    assert len({trajectory.id for trajectory in trajectories}) == len(trajectories)
    for rollout in rollouts:
        known = {trajectory.id for trajectory in rollout.trajectories}
        for trajectory in rollout.trajectories:
            if max_tokens == 10_000:  # else the parent may have been forgotten, and its record with it
                assert trajectory.parent is None or trajectory.parent in known
            assert trajectory.messages[-1].role == "assistant"
            assert len(trajectory.messages) >= 2 * len(trajectory.segments)
    named = {rollout.info["session"] for rollout in rollouts}
    if max_tokens == 10_000:
        assert len([r for r in rollouts if r.info["session"]]) == len(named - {None}), (
            "a session is one rollout"
        )


def test_the_least_recently_used_are_forgotten(tmp_path):
    played = Played(tmp_path, max_tokens=12)
    talks = [(Message("user", "x" * n),) for n in (1, 2, 3)]
    states = [(*talk, played.answer(talk, (), None, "stop"), USER) for talk in talks]
    assert len(played.sessions) == 3
    played.answer(states[0], (), None, "stop")  # now 7 + 4 + 4 tokens: the second must go
    assert len(played.sessions) == 2
    assert played.sessions.num_tokens == 11
    played.answer(states[1], (), None, "stop")
    played.answer(states[0], (), None, "stop")
    sizes = sorted(len(rollout.trajectories[0].segments) for rollout in read_rollouts(tmp_path))
    assert sizes == [1, 1, 1, 1, 2]


def test_a_prompt_shares_whole_replies():
    sessions = Sessions()
    asked = Trajectory((USER,))
    conversation = sessions.place(asked, array("i", [1, 2]), None)
    sessions.remember(conversation, (USER, Message("assistant", "a")), array("i", [1, 2, 3, 4]))
    for prompt, shared in (
        ([1, 2], 0),
        ([1, 2, 3, 9], 0),
        ([1, 9, 3, 4], 0),
        ([1, 2, 3, 4], 4),
        ([1, 2, 3, 4, 5], 4),
    ):
        assert conversation.num_shared(array("i", prompt)) == shared
    assert sessions.place(asked, array("i", [1, 2, 3, 4, 5]), None) is conversation
    assert sessions.place(asked, array("i", [1, 2, 3, 4, 5]), "other") is not conversation
    assert (
        sessions.place(Trajectory((USER,), (Tool("t"),)), array("i", [1, 2, 3, 4, 5]), None)
        is not conversation
    )


def test_a_past_told_in_other_words_counts_in_its_new_words():
    """A prompt may extend a conversation by its ids though the client's words for it are others."""
    sessions = Sessions(max_tokens=8)
    ours, theirs = Message("assistant", "<a", (ToolCall("f", id="call_0"),)), Message("assistant", "<a>")
    conversation = sessions.place(Trajectory((USER,)), array("i", [1]), None)
    sessions.remember(conversation, (USER, ours), array("i", [1, 2]))
    assert sessions.match(Trajectory((USER, ours, USER)), None).conversation is conversation
    last = Message("assistant", "b")
    sessions.remember(conversation, (USER, theirs, USER, last), array("i", [1, 2, 3, 4]))
    assert sessions.match(Trajectory((USER, ours, USER)), None) is None
    match = sessions.match(Trajectory((USER, theirs, USER, last, USER)), None)
    assert (match.end.num_messages, match.num_messages) == (4, 4)
    other = sessions.place(Trajectory((Message("user", "else"),)), array("i", [7]), None)
    sessions.remember(other, (Message("user", "else"), last), array("i", range(8)))
    assert (len(sessions), sessions.num_tokens) == (1, 8)
    assert sessions.match(Trajectory((USER, theirs, USER, last, USER)), None) is None
    assert sessions.quoted(Trajectory((USER, ours)), None) is None


def test_where_the_template_rewrites_the_past_the_clients_words_are_rendered(tmp_path):
    recorder = Recorder(tmp_path, model="m")
    asked = Trajectory((USER,))
    tokens = (TokenLogprob(5, -1.0),)
    completion = Completion(Message("assistant", "a  b"), (1,), (5,), tokens, "stop")
    recorder.record(Turn("chat", asked, (1,), SamplingParams()), completion, SamplingParams())
    again = Trajectory((USER, Message("assistant", "a b"), USER))
    exact, prompt = recorder.prepare(again, None, lambda trajectory: (*trajectory.token_ids, 9))
    assert (exact.messages[1].content, prompt) == ("a  b", (1, 5, 9))
    rewritten, prompt = recorder.prepare(again, None, lambda trajectory: (7, 8))
    assert (rewritten.messages, rewritten.token_ids, rewritten.parent) == (again.messages, (), exact.id)


def test_half_a_line_is_taken_back(tmp_path):
    path = tmp_path / "r.jsonl"
    append(path, b"first\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            append(path, b"second\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append(path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"
