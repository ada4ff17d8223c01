"""What attempts earn beside their verdicts."""

import pytest

from lathe.errors import UserError
from lathe.train.reward import RewardConfig, malformed, overlong, reward_parts, sampled_replies
from lathe.types import Message, Rollout, Segment, ToolCall, Trajectory, Verdict

DAMAGED = "<function=bash>\n<parameter=command>\nls"


def attempt(num_tokens=4, *, messages=(), segments=(), stop_reason="done", verdict=None, patch=None):
    sampled = Trajectory(messages, (), (1,) * num_tokens, (True,) * num_tokens, (0.0,) * num_tokens, segments)
    info = {} if patch is None else {"patch": patch}
    return Rollout((sampled,), stop_reason, verdict or Verdict(1.0), "t", info=info)


def test_the_verdict_alone_counts_until_a_part_is_given_weight():
    cut = attempt(stop_reason="length", patch={}, messages=(Message("assistant", DAMAGED),))
    assert reward_parts(cut, RewardConfig()) == {"verdict": 1.0, "total": 1.0}


@pytest.mark.parametrize(
    "num_tokens, value", [(60, 0), (80, 0), (85, -0.25), (90, -0.5), (100, -1), (200, -1)]
)
def test_overlong_attempts_lose_more_and_more_over_the_buffer(num_tokens, value):
    assert overlong(attempt(num_tokens), 100, 20) == value


def test_without_a_buffer_the_limit_is_sharp():
    assert overlong(attempt(100), 100, 0) == 0 and overlong(attempt(101), 100, 0) == -1


def test_parts_add_up():
    cut = attempt(90, stop_reason="max_turns", patch={})
    config = RewardConfig(overlong=0.5, unfinished=0.25, empty=2.0, max_tokens=100, buffer_tokens=20)
    assert reward_parts(cut, config) == {
        "verdict": 1.0,
        "overlong": -0.25,
        "unfinished": -0.25,
        "empty": -2.0,
        "total": -1.5,
    }


def test_a_suspect_loses_by_parts():
    suspect = attempt(verdict=Verdict(-1.0, suspect="it read the tests"), stop_reason="length")
    assert reward_parts(suspect, RewardConfig(unfinished=0.5))["total"] == -1.5


def test_malformed_is_the_share_of_replies_with_calls_that_cant_be_read():
    call = Message("assistant", "", tool_calls=(ToolCall("bash", {"command": "ls"}),))
    said = (Message("user", "go"), Message("assistant", DAMAGED), Message("user", "again"), call)
    both = attempt(messages=said, segments=(Segment(0, 1, "stop"), Segment(2, 3, "tool_calls")))
    assert malformed(both) == -0.5
    # a branch repeats the damaged reply, and samples none of its own
    branch = Trajectory(said, parent="x", segments=(Segment(2, 3, "stop"),))
    assert sampled_replies(Rollout((branch,))) == [call]
    assert malformed(Rollout((branch,))) == 0


def test_settings_are_checked():
    with pytest.raises(UserError, match=r"reward\.empty is -1"):
        RewardConfig(empty=-1)
    with pytest.raises(UserError, match=r"reward\.overlong needs reward\.max_tokens"):
        RewardConfig(overlong=1.0)
    with pytest.raises(ValueError, match="has no reward"):
        reward_parts(attempt(verdict=Verdict(reason="gone")), RewardConfig())
