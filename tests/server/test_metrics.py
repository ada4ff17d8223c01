"""GET /metrics as Prometheus reads it: its own parser, after real requests over a socket."""

import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import serve, wait_until

from lathe.server.app import create_app
from lathe.testing import ScriptedModel

TURN = {"messages": [{"role": "user", "content": "Hi."}]}


class Scrape:
    """One answer of /metrics: `scrape("name", label="value")` is a sample, 0 where there is none yet."""

    def __init__(self, url: str, **options):
        self.response = httpx.get(f"{url}/metrics", timeout=5, **options)
        assert self.response.status_code == 200
        assert self.response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.families = {family.name: family for family in text_string_to_metric_families(self.response.text)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples.get((f"lathe_{name}", tuple(sorted(labels.items()))), 0)


def ask(url: str, **changes) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=TURN | changes, timeout=20)


def test_tokens_and_times_are_those_of_the_replies():
    delay_s = 0.02
    with serve(ScriptedModel("Hello", "Hello", delay_s=delay_s)) as url:
        usage = ask(url).json()["usage"]
        assert "usage" in ask(url, stream=True, stream_options={"include_usage": True}).text
        scrape = Scrape(url)
    num_tokens = usage["completion_tokens"]
    assert num_tokens == 6, "five letters and the end"
    assert scrape("prompt_tokens_total") == 2 * usage["prompt_tokens"]
    assert scrape("generation_tokens_total") == 2 * num_tokens
    assert scrape("cached_prompt_tokens_total") == 0
    assert scrape("request_success_total", dialect="chat", finish_reason="stop") == 2
    for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency"):
        assert scrape(f"{name}_seconds_count") == 2
    first, each, whole = (
        scrape(f"{name}_seconds_sum") / 2
        for name in ("time_to_first_token", "time_per_output_token", "e2e_request_latency")
    )
    assert delay_s <= first <= whole
    assert delay_s <= each
    assert first + (num_tokens - 1) * each == pytest.approx(whole, abs=0.02)


def test_each_of_n_replies_counts_but_the_prompt_once():
    with serve(ScriptedModel("one", "two", "three")) as url:
        usage = ask(url, n=3, max_tokens=2).json()["usage"]
        scrape = Scrape(url)
    assert scrape("prompt_tokens_total") == usage["prompt_tokens"]
    assert scrape("generation_tokens_total") == 6
    assert scrape("request_success_total", dialect="chat", finish_reason="length") == 3
    assert scrape("time_to_first_token_seconds_count") == 1
    assert scrape("time_per_output_token_seconds_count") == 3


def test_what_the_engine_holds_is_read_when_asked(llm):
    endless = {"ignore_eos": True, "stream": True}
    with serve(llm) as url:
        idle = Scrape(url)
        num_pages = idle("kv_cache_pages", state="free")
        assert num_pages == llm.engine.pool.num_pages
        assert (idle("num_requests_running"), idle("kv_cache_usage_ratio")) == (0, 0)
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=TURN | endless, timeout=20) as reply:
            pieces = reply.iter_bytes()  # held: the connection closes when it is collected
            next(pieces)
            assert wait_until(lambda: llm.engine.num_running == 1)
            busy = Scrape(url)
        assert wait_until(
            lambda: Scrape(url)("request_failure_total", dialect="chat", reason="cancelled") == 1
        )
        after = Scrape(url)
    assert busy("num_requests_running") == 1
    used = busy("kv_cache_pages", state="used")
    assert 0 < used < num_pages
    assert busy("kv_cache_pages", state="free") == num_pages - used
    assert busy("kv_cache_usage_ratio") == pytest.approx(used / num_pages)
    assert after("num_requests_running") == 0
    assert after("kv_cache_usage_ratio") == 0
    assert after("generation_tokens_total") > 0, "the work was done, whoever left"
    assert after("e2e_request_latency_seconds_count") == 0


def test_a_failed_reply_is_counted(llm, monkeypatch):
    def broken(shares):
        raise FloatingPointError("a bug")

    monkeypatch.setattr(llm.engine.runner, "run", broken)
    with serve(llm) as url:
        assert ask(url).status_code == 500
        scrape = Scrape(url)
    assert scrape("request_failure_total", dialect="chat", reason="error") == 1
    assert scrape("prompt_tokens_total") == 0


def test_each_app_counts_for_itself_and_every_family_says_what_it_is():
    create_app(ScriptedModel())
    with serve(ScriptedModel("Hi.")) as url:
        assert ask(url).status_code == 200
        scrape = Scrape(url)
    assert scrape("model_info", model="scripted", max_model_len="32768") == 1
    assert all(family.documentation and family.type != "unknown" for family in scrape.families.values())
    assert all(name.startswith("lathe_") for name in scrape.families)
    assert "_created" not in scrape.response.text


def test_the_numbers_are_behind_the_key():
    with serve(ScriptedModel(), api_key="secret") as url:
        assert httpx.get(f"{url}/metrics").status_code == 401
        Scrape(url, headers={"Authorization": "Bearer secret"})


def test_a_prompt_that_takes_long_to_encode_is_part_of_the_first_tokens_time(monkeypatch):
    model = ScriptedModel("Hi.")
    encode = model.encode

    def slow(trajectory):
        time.sleep(0.2)
        return encode(trajectory)

    monkeypatch.setattr(model, "encode", slow)
    with serve(model) as url:
        ask(url)
        assert Scrape(url)("time_to_first_token_seconds_sum") >= 0.2
