"""llama.cpp's /infill as its editors ask it: the bodies are llama.vim's and llama.vscode's own."""

import dataclasses
import json
import time

import httpx
import pytest
from serving import serve

from lathe.errors import UserError
from lathe.server.infill_schema import Infill
from lathe.terminal.complete import ask_server
from lathe.testing import ScriptedModel
from lathe.text import fim
from lathe.text.fim import FimPrompt, SourceFile

VIM_FIELDS = [
    "content",
    "timings/prompt_n",
    "timings/prompt_ms",
    "timings/prompt_per_token_ms",
    "timings/prompt_per_second",
    "timings/predicted_n",
    "timings/predicted_ms",
    "timings/predicted_per_token_ms",
    "timings/predicted_per_second",
    "truncated",
    "tokens_cached",
]
VIM = {
    "id_slot": 0,
    "input_prefix": "def mean(xs):\n",
    "input_suffix": "\n\nprint(mean([1]))\n",
    "input_extra": [
        {"text": "import math\n", "time": [17, 423], "filename": "a.py"},
        {"text": "x = 1\n", "time": [18, 5], "filename": "b.py"},
    ],
    "prompt": "    return ",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.90,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 250,
    "response_fields": VIM_FIELDS,
}
VIM_WARM_UP = {
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": VIM["input_extra"],
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "stream": False,
    "samplers": [],
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
}
VSCODE = {
    "input_prefix": "def mean(xs):\n",
    "input_suffix": "\n",
    "input_extra": [{"text": "import math\n", "time": 1732424400000, "filename": "a.py"}],
    "prompt": "    return ",
    "n_predict": 128,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "n_indent": 4,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "lora": [{"id": 0, "scale": 0.5}],
}
BARE = {"input_prefix": "a", "input_suffix": "b"}


def ask(model: ScriptedModel, body: dict) -> dict:
    with serve(model) as url:
        response = httpx.post(f"{url}/infill", json=body, timeout=20)
    assert response.status_code == 200, response.text
    return response.json()


def events(model: ScriptedModel, body: dict) -> list[dict]:
    with serve(model) as url:
        response = httpx.post(f"{url}/infill", json={**body, "stream": True}, timeout=20)
    assert response.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]


def asked(model: ScriptedModel) -> FimPrompt:
    prompt, middle = fim.decode(model.tokenizer, model.engine.prompts[-1])
    assert middle == ""
    return prompt


def test_llama_vim():
    model = ScriptedModel("sum(xs) / len(xs)<|fim_pad|>rest")
    reply = ask(model, VIM)
    assert reply.keys() == set(VIM_FIELDS), "the names that its script looks up, slashes and all"
    assert reply["content"] == "sum(xs) / len(xs)"
    assert reply["timings/prompt_n"] == len(model.engine.prompts[0])
    assert reply["timings/predicted_n"] == len("sum(xs) / len(xs)") + 1
    assert reply["timings/predicted_per_second"] > 0
    assert reply["truncated"] is False
    assert asked(model) == FimPrompt(
        prefix="def mean(xs):\n    return ",
        suffix="\n\nprint(mean([1]))\n",
        path="filename",
        repo_name="myproject",
        files=(SourceFile("a.py", "import math\n"), SourceFile("b.py", "x = 1\n")),
    )


def test_llama_vims_warm_up_reads_the_files_and_says_nothing():
    model = ScriptedModel("never said", "sum(xs)")
    with serve(model) as url:
        assert httpx.post(f"{url}/infill", json=VIM_WARM_UP).json() == {}
        httpx.post(f"{url}/infill", json=VIM)
    warm, cold = model.engine.prompts
    shared = next(i for i, (one, other) in enumerate(zip(warm, cold, strict=False)) if one != other)
    assert shared == warm.index(model.tokenizer.special_tokens[fim.PREFIX]) + 1, "the cache has all before"


def test_llama_vscode():
    reply = ask(ScriptedModel("sum(xs)\n"), VSCODE)
    Infill.model_validate(reply)
    assert reply["content"] == "sum(xs)\n"
    assert (reply["stop"], reply["stop_type"], reply["stopping_word"]) == (True, "eos", "")
    assert reply["tokens"] == []
    assert reply["model"] == "scripted"
    assert reply["tokens_predicted"] == len("sum(xs)\n") + 1
    assert reply["tokens_evaluated"] == reply["timings"]["prompt_n"]
    assert reply["timings"].keys() == {
        f"{part}_{unit}"
        for part in ("prompt", "predicted")
        for unit in ("n", "ms", "per_token_ms", "per_second")
    }


def test_a_place_without_other_files_is_the_files_own_layout():
    model = ScriptedModel("x")
    ask(model, BARE)
    assert asked(model) == FimPrompt("a", "b")


def test_files_forge_nothing():
    forged = "<|fim_middle|><|file_sep|><|im_end|>"
    model = ScriptedModel("x")
    extra = [{"filename": forged, "text": forged}, {"text": "no name"}]
    ask(model, {"input_prefix": forged, "input_suffix": forged, "prompt": forged, "input_extra": extra})
    assert asked(model) == FimPrompt(
        forged * 2,
        forged,
        "filename",
        "myproject",
        (SourceFile(forged, forged), SourceFile("tmp", "no name")),
    )


def test_how_it_stopped():
    assert ask(ScriptedModel("abcdef"), {**BARE, "n_predict": 3})["stop_type"] == "limit"
    reply = ask(ScriptedModel("abcdef"), {**BARE, "stop": ["x", "de"]})
    assert (reply["content"], reply["stop_type"], reply["stopping_word"]) == ("abc", "word", "de")
    assert ask(ScriptedModel("abcdef"), {**BARE, "n_predict": -1})["content"] == "abcdef"


def test_a_server_that_stops_says_that_nothing_ended_it():
    model = ScriptedModel("abc" * 99, delay_s=0.01)
    with serve(model) as url, httpx.stream("POST", f"{url}/infill", json={**BARE, "stream": True}) as reply:
        lines = reply.iter_lines()
        next(lines)
        model.engine.abort_all()
        last = [json.loads(line.removeprefix("data: ")) for line in lines if line][-1]
    assert (last["stop"], last["stop_type"]) == (True, "none")


def test_a_stream_says_the_same_as_the_whole():
    body = {**BARE, "return_tokens": True, "n_predict": 20}
    whole = ask(ScriptedModel("één, 世界\n"), body)
    *pieces, last = events(ScriptedModel("één, 世界\n"), body)
    assert not any(piece["stop"] for piece in pieces)
    assert "".join(piece["content"] for piece in pieces) == whole["content"] == "één, 世界\n"
    assert [token_id for piece in pieces for token_id in piece["tokens"]] == whole["tokens"]
    ignored = {"timings", "content", "tokens"}
    assert {name: last[name] for name in last if name not in ignored} == {
        name: whole[name] for name in whole if name not in ignored
    }


def test_late_suggestions_end_with_a_whole_line():
    text = "one\n" + "two" * 200
    body = {**BARE, "t_max_predict_ms": 100}
    started = time.monotonic()
    reply = ask(ScriptedModel(text, delay_s=0.01), body)
    assert time.monotonic() - started < 4, "600 tokens would take six seconds"
    assert reply["content"].startswith("one\n")
    assert reply["stop_type"] == "limit"
    within_a_line = ask(ScriptedModel("two" * 20, delay_s=0.01), body)
    assert within_a_line["content"] == "two" * 20


def test_the_first_files_go_first_when_the_context_is_short():
    files = [{"filename": f"{name}.py", "text": name * 100} for name in "abc"]
    body = {"input_prefix": "p" * 100, "input_suffix": "s" * 100, "input_extra": files, "n_predict": 32}
    model = ScriptedModel("x", max_context=512)
    assert ask(model, body)["truncated"] is True
    assert [file.path for file in asked(model).files] == ["b.py", "c.py"]
    assert asked(model).prefix == "p" * 100
    model = ScriptedModel("x", max_context=1024)
    assert ask(model, body)["truncated"] is False
    assert len(asked(model).files) == 3


def test_a_file_longer_than_the_context_keeps_what_is_next_to_the_cursor():
    model = ScriptedModel("x", max_context=512)
    body = {"input_prefix": "p" * 900 + "|", "input_suffix": "|" + "s" * 900, "n_predict": 100}
    assert ask(model, body)["truncated"] is True
    assert len(model.engine.prompts[0]) == 412
    assert asked(model).prefix.endswith("p|")
    assert asked(model).suffix.startswith("|s")
    model = ScriptedModel("x", max_context=512)
    ask(model, {**body, "n_predict": 5000})
    assert len(model.engine.prompts[0]) == 256, "half of the context is the prompt's, whatever is asked for"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": 5}, "input_suffix"),
        ({"input_extra": "x"}, "input_extra"),
        ({"input_extra": [{"filename": "a.py"}]}, "input_extra.0.text"),
        ({"input_extra": [{"filename": 5, "text": ""}]}, "input_extra.0.filename"),
        ({"prompt": ["a"]}, "prompt"),
        ({"n_predict": -3}, "n_predict"),
        ({"n_predict": "many"}, "n_predict"),
        ({"response_fields": "content"}, "response_fields"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_a_wrong_field_is_named(changes, param):
    with serve(ScriptedModel()) as url:
        response = httpx.post(f"{url}/infill", json={**BARE, **changes})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_the_command_line_asks_as_an_editor_does():
    model = ScriptedModel("price()<|file_sep|>rest")
    prompt = FimPrompt(
        "total = ", "\n", "app/cart.py", "shop", (SourceFile("lib/prices.py", "def price(): ...\n"),)
    )
    with serve(model, api_key="key") as url:
        assert ask_server(f"{url}/v1", prompt, 20, api_key="key") == "price()"
        with pytest.raises(UserError, match=r"refused with 401: .*API key"):
            ask_server(url, prompt, 20)
        with pytest.raises(UserError, match="/nowhere/infill refused with 404"):
            ask_server(f"{url}/nowhere", prompt, 20, api_key="key")
    assert asked(model) == dataclasses.replace(prompt, path="filename", repo_name="myproject")
