"""The doubles keep their own promises."""

from lathe.testing import ScriptedModel, num_shared
from lathe.types import Message, Trajectory


async def test_a_reply_may_depend_on_the_prompt():
    model = ScriptedModel(answer=lambda prompt: "a title" if "title" in prompt else None)
    try:
        asked = await model.complete(Trajectory((Message("user", "A title, please."),)))
        other = await model.complete(Trajectory((Message("user", "Hi."),)))
    finally:
        model.close()
    assert asked.message.content == "a title"
    assert other.message.content == ""


async def test_what_an_earlier_conversation_had_is_cached():
    model = ScriptedModel("One.", "Two.", "Three.", prefix_cache=True)
    try:
        first = await model.complete(Trajectory((Message("user", "Count."),)))
        turns = (Message("user", "Count."), first.message, Message("user", "On."))
        second = await model.complete(Trajectory(turns))
        again = await model.complete(Trajectory(turns))
    finally:
        model.close()
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens == len(first.prompt_token_ids) + len(first.token_ids)
    assert again.num_cached_tokens == len(second.prompt_token_ids) - 1, "the last token is always read"
    assert model.engine.num_cached_tokens[1:] == [second.num_cached_tokens, again.num_cached_tokens]


def test_the_closest_of_many_conversations_counts():
    model = ScriptedModel(prefix_cache=True)
    for text in ("abx", "b", "abcd", "a", "abcz"):
        model.engine.submit(tuple(text.encode()), model.default_sampling, lambda sampled: None)
    assert model.engine.num_cached_tokens == [0, 0, 2, 0, 3]
    assert num_shared((1, 2, 3), (1, 2, 4)) == 2
    model.close()
