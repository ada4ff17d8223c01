from dataclasses import replace

import pytest

from lathe.types import Completion, Message, TokenLogprob, TokensDoNotExtend, Trajectory


def completion(prompt: tuple[int, ...], sampled: tuple[int, ...]) -> Completion:
    return Completion(
        message=Message("assistant", "x"),
        prompt_token_ids=prompt,
        token_ids=sampled,
        logprobs=tuple(TokenLogprob(t, -float(t)) for t in sampled),
        finish_reason="stop",
        weights_version=3,
    )


def test_a_trajectory_marks_what_was_sampled():
    first = Trajectory((Message("user", "hi"),)).extend(completion((1, 2), (3, 4)))
    second = first.add(Message("user", "more")).extend(completion((1, 2, 3, 4, 5), (6,)))
    assert second.token_ids == (1, 2, 3, 4, 5, 6)
    assert second.loss_mask == (False, False, True, True, False, True)
    assert second.logprobs == (0.0, 0.0, -3.0, -4.0, 0.0, -6.0)
    assert [(segment.start, segment.stop) for segment in second.segments] == [(2, 4), (5, 6)]
    assert second.weights_versions == (3,)
    assert [m.role for m in second.messages] == ["user", "assistant", "user", "assistant"]


def test_a_prompt_that_does_not_extend_is_refused():
    first = Trajectory((Message("user", "hi"),)).extend(completion((1, 2), (3, 4)))
    with pytest.raises(TokensDoNotExtend):
        first.extend(completion((1, 2, 3, 9), (5,)))


def test_weights_that_change_within_a_reply_are_told_by_place():
    changed = replace(completion((1, 2), (3, 4, 5)), weights_version=3, weights_updates=((1, 4), (2, 6)))
    (segment,) = Trajectory((Message("user", "hi"),)).extend(changed).segments
    assert (segment.weights_version, segment.weights_updates) == (3, ((3, 4), (4, 6)))
    assert segment.weights_versions == (3, 4, 6)
