"""Raw completions as OpenAI's own client sees them, over a socket: all kinds of prompts, and fill-in."""

import openai
import pytest
from serving import client_of

from lathe.server.completions_schema import TextCompletion
from lathe.testing import ScriptedModel
from lathe.text import fim
from lathe.text.fim import FimPrompt

ANY = {"model": "any-name"}


def streamed(client, **fields) -> dict[int, dict]:
    """The choices of a stream, put together as clients do it."""
    choices: dict[int, dict] = {}
    for chunk in client.completions.create(**fields, stream=True):
        assert chunk.object == "text_completion"
        for piece in chunk.model_dump()["choices"]:
            whole = choices.setdefault(piece["index"], {"text": "", "logprobs": {}, "token_ids": []})
            assert "finish_reason" not in whole, "nothing follows a choice's last piece"
            whole["text"] += piece["text"]
            for name, entries in (piece["logprobs"] or {}).items():
                whole["logprobs"].setdefault(name, []).extend(entries)
            whole["token_ids"] += piece.get("token_ids", [])
            if "prompt_token_ids" in piece:
                assert "prompt_token_ids" not in whole
                whole["prompt_token_ids"] = piece["prompt_token_ids"]
            if piece["finish_reason"]:
                whole["finish_reason"] = piece["finish_reason"]
    return choices


def test_a_text_is_continued():
    model = ScriptedModel("Grüße, 世界! 🎈")
    with client_of(model) as client:
        reply = client.completions.create(**ANY, prompt="Say: ", max_tokens=100)
    TextCompletion.model_validate(reply.model_dump())
    assert reply.id.startswith("cmpl-")
    assert reply.object == "text_completion"
    assert reply.model == "scripted"
    (choice,) = reply.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("Grüße, 世界! 🎈", "stop", None)
    assert model.engine.prompts == [tuple(b"Say: ")]
    assert reply.usage.prompt_tokens == 5
    assert reply.usage.completion_tokens == len("Grüße, 世界! 🎈".encode()) + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_sixteen_tokens_unless_told():
    with client_of(ScriptedModel("x" * 99, "x" * 99, "x" * 99)) as client:
        (choice,) = client.completions.create(**ANY, prompt="p").choices
        assert (choice.text, choice.finish_reason) == ("x" * 16, "length")
        (choice,) = client.completions.create(**ANY, prompt="p", max_tokens=20).choices
        assert choice.text == "x" * 20
        (choice,) = client.completions.create(**ANY, prompt="p", max_tokens=65_536).choices
        assert (choice.text, choice.finish_reason) == ("x" * 99, "stop")


def test_control_tokens_in_a_raw_prompt_count_as_such():
    model = ScriptedModel()
    with client_of(model) as client:
        client.completions.create(**ANY, prompt="<|im_start|>user\nHi.<|im_end|>\n")
    special = model.tokenizer.special_tokens
    assert model.engine.prompts[0][0] == special["<|im_start|>"]
    assert model.engine.prompts[0][-2] == special["<|im_end|>"]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", [b"ab"]),
        (["ab", "c"], [b"ab", b"c"]),
        ([97, 98], [b"ab"]),
        ([[97, 98], [99]], [b"ab", b"c"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_kind_of_prompt_and_its_choices(prompt, prompts, stream):
    model = ScriptedModel(*["same"] * 4)
    with client_of(model) as client:
        if stream:
            choices = streamed(client, **ANY, prompt=prompt, n=2, echo=True)
            texts = [choices[index]["text"] for index in sorted(choices)]
        else:
            reply = client.completions.create(**ANY, prompt=prompt, n=2, echo=True)
            assert [choice.index for choice in reply.choices] == list(range(2 * len(prompts)))
            texts = [choice.text for choice in reply.choices]
            assert reply.usage.prompt_tokens == sum(map(len, prompts)), "a prompt counts once"
            assert reply.usage.completion_tokens == 2 * len(prompts) * len("same.")
    assert texts == [text.decode() + "same" for text in prompts for _ in range(2)]
    assert sorted(model.engine.prompts) == sorted(tuple(text) for text in prompts for _ in range(2))


def test_a_stream_and_its_usage():
    with client_of(ScriptedModel("één, 世界", "zwei", "trois")) as client:
        fields = {**ANY, "prompt": ["a", "b", "c"], "stream_options": {"include_usage": True}}
        chunks = list(client.completions.create(**fields, max_tokens=50, stream=True))
    *pieces, last = chunks
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in pieces)
    texts = ["".join(c.choices[0].text for c in pieces if c.choices[0].index == i) for i in range(3)]
    assert sorted(texts) == sorted(["één, 世界", "zwei", "trois"])
    assert last.choices == []
    assert last.usage.prompt_tokens == 3
    assert last.usage.completion_tokens == sum(len(text.encode()) + 1 for text in texts)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_server_that_stops_ends_all_choices_with_what_they_have():
    model = ScriptedModel("a" * 400, "b" * 400, delay_s=0.01)
    with client_of(model) as client:
        stream = client.completions.create(**ANY, prompt=["a", "b"], max_tokens=400, stream=True)
        next(stream)
        model.engine.abort_all()
        ends = {chunk.choices[0].index: chunk.choices[0].finish_reason for chunk in stream}
    assert ends == {0: "abort", 1: "abort"}


def test_stop_strings_and_stop_tokens():
    with client_of(ScriptedModel("count 1, 2, 3", "count 1, 2, 3")) as client:
        (choice,) = client.completions.create(**ANY, prompt="p", stop=[" 2"]).choices
        assert (choice.text, choice.finish_reason) == ("count 1,", "stop")
        fields = {**ANY, "prompt": "p", "extra_body": {"stop_token_ids": [ord("2")]}}
        (choice,) = client.completions.create(**fields).choices
        assert (choice.text, choice.finish_reason) == ("count 1, ", "stop")


# Log-probabilities, and ids for who wants to be exact


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_have_the_legacy_shape(stream, echo):
    fields = {**ANY, "prompt": "aé", "echo": echo, "logprobs": 2, "max_tokens": 9}
    with client_of(ScriptedModel("b€c")) as client:
        if stream:
            choice = streamed(client, **fields)[0]
        else:
            choice = client.completions.create(**fields).choices[0].model_dump()
    before = ["a", "bytes:\\xc3", "bytes:\\xa9"]
    said = ["b", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "c", "<|im_end|>"]
    assert choice["text"] == ("aé" if echo else "") + "b€c"
    lists = choice["logprobs"]
    assert lists["tokens"] == (before if echo else []) + said
    assert lists["text_offset"] == ([0, 1, 1, 2, 3, 3, 3, 4, 5] if echo else [0, 1, 1, 1, 2, 3])
    assert lists["token_logprobs"] == ([None, 0, 0] if echo else []) + [0] * 6
    assert lists["top_logprobs"][-1] == {"<|im_end|>": 0}
    if echo:
        assert lists["top_logprobs"][:2] == [None, {"bytes:\\xc3": 0}]


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_is_scored_without_a_reply(stream):
    fields = {**ANY, "prompt": ["ab", "c"], "echo": True, "logprobs": 0, "max_tokens": 0}
    with client_of(ScriptedModel("never said", "never said")) as client:
        if stream:
            choices = streamed(client, **fields)
        else:
            reply = client.completions.create(**fields)
            choices = {choice.index: choice.model_dump() for choice in reply.choices}
            assert reply.usage.completion_tokens == 0
    assert [choices[i]["text"] for i in range(2)] == ["ab", "c"]
    assert [choices[i]["finish_reason"] for i in range(2)] == ["length", "length"]
    assert choices[0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [None, 0.0],
        "top_logprobs": [None, {"b": 0.0}],
        "text_offset": [0, 1],
    }


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_on_request(stream):
    fields = {**ANY, "prompt": "aé", "extra_body": {"return_token_ids": True}, "max_tokens": 50}
    with client_of(ScriptedModel("é<|fim_pad|>")) as client:
        if stream:
            choice = streamed(client, **fields)[0]
        else:
            choice = client.completions.create(**fields).choices[0].model_dump()
    special = client_tokens()
    assert choice["prompt_token_ids"] == list("aé".encode())
    assert choice["token_ids"] == [*"é".encode(), special["<|fim_pad|>"], special["<|im_end|>"]]


def client_tokens() -> dict[str, int]:
    return ScriptedModel().tokenizer.special_tokens


def test_ids_are_left_out_unless_asked_for():
    with client_of(ScriptedModel("x")) as client:
        choice = client.completions.create(**ANY, prompt="p").choices[0].model_dump()
    assert not {"token_ids", "prompt_token_ids"} & choice.keys()


# Fill in the middle


@pytest.mark.parametrize("stop", ["<|fim_pad|>", "<|file_sep|>", "<|endoftext|>", "<|fim_prefix|>"])
def test_a_suffix_makes_a_place_to_fill_in(stop):
    model = ScriptedModel(f"return x{stop}and more")
    with client_of(model) as client:
        (choice,) = client.completions.create(
            **ANY, prompt="def f(x):\n    ", suffix="\n", max_tokens=99
        ).choices
    assert (choice.text, choice.finish_reason) == ("return x", "stop")
    assert fim.decode(model.tokenizer, model.engine.prompts[0]) == (FimPrompt("def f(x):\n    ", "\n"), "")


def test_a_file_that_names_control_tokens_forges_none():
    model = ScriptedModel("x")
    prefix, suffix = "a = '<|fim_suffix|>'\n", "<|fim_middle|><|im_end|>"
    with client_of(model) as client:
        client.completions.create(**ANY, prompt=prefix, suffix=suffix)
    assert fim.decode(model.tokenizer, model.engine.prompts[0]) == (FimPrompt(prefix, suffix), "")


def test_an_empty_suffix_is_one():
    model = ScriptedModel("x")
    with client_of(model) as client:
        client.completions.create(**ANY, prompt="a", suffix="")
    assert fim.decode(model.tokenizer, model.engine.prompts[0]) == (FimPrompt("a", ""), "")


# Refusals


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": None}, "prompt", "valid"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": ["a", ""]}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt.0", "at least 1"),
        ({"prompt": [1, -1]}, "prompt.1", "greater than or equal to 0"),
        ({"prompt": [1, "a"]}, "prompt.1", "valid"),
        ({"prompt": [1, True]}, "prompt.1", "valid"),
        ({"prompt": [97, 271]}, "prompt", "271"),
        ({"prompt": "x" * 600}, "prompt", "maximum context length is 512 tokens"),
        ({"prompt": ["x", "x" * 600]}, "prompt", "maximum context length is 512 tokens"),
        ({"prompt": ["x"] * 20, "n": 128}, "prompt", "2048"),
        ({"best_of": 3}, "best_of", "must be n"),
        ({"best_of": 1, "n": 2}, "best_of", "must be n"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"suffix": "s", "prompt": ["a"]}, "prompt", "suffix needs one prompt"),
        ({"suffix": "s", "prompt": [1]}, "prompt", "suffix needs one prompt"),
        ({"suffix": "s", "echo": True}, "echo", "suffix"),
        ({"suffix": "s" * 600}, "prompt", "maximum context length is 512 tokens"),
        ({"extra_body": {"logit_bias": {"5": 1}}}, "logit_bias", "not supported yet"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_field_is_named(fields, param, words, stream):
    with (
        client_of(ScriptedModel(max_context=512)) as client,
        pytest.raises(openai.BadRequestError, match=words) as refusal,
    ):
        client.completions.create(**{**ANY, "prompt": "p", "stream": stream, **fields})
    assert refusal.value.body["param"] == param


def test_best_of_n_is_n():
    with client_of(ScriptedModel("a", "b")) as client:
        reply = client.completions.create(**ANY, prompt="p", n=2, best_of=2)
    assert sorted(choice.text for choice in reply.choices) == ["a", "b"]


def test_a_model_without_the_control_tokens_says_so(smollm2_tokenizer):
    model = ScriptedModel(tokenizer=smollm2_tokenizer)
    with client_of(model) as client, pytest.raises(openai.BadRequestError, match=r"no <\|fim_prefix\|>"):
        client.completions.create(**ANY, prompt="a", suffix="b")


@pytest.fixture
def smollm2_tokenizer():
    from lathe.engine.loading import load_tokenizer
    from lathe.model import hub
    from lathe.model.checkpoint import open_checkpoint

    return load_tokenizer(open_checkpoint(hub.resolve("smollm2")))


def test_an_error_in_one_reply_ends_the_stream_and_all_replies():
    model = ScriptedModel("a" * 400, "b" * 400, delay_s=0.01)
    with client_of(model) as client:
        stream = client.completions.create(**ANY, prompt=["a", "b"], max_tokens=400, stream=True)
        next(stream)
        model.engine.submit = None
        with pytest.raises(openai.APIError, match="traceback"):
            list(client.completions.create(**ANY, prompt=["a", "b"], stream=True))
        stream.close()
