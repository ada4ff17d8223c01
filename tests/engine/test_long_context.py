"""Past the 262,144 positions that Qwen3-Coder was trained on, by YaRN, on a model small enough for a test."""

import pytest
import torch
from listening import Listener, greedy_reference
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine, EngineConfig
from lathe.errors import PromptTooLong
from lathe.types import SamplingParams

TRAINED = 262_144


@pytest.fixture(scope="module")
def model():
    config = tiny_config(
        num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, max_position_embeddings=TRAINED
    )
    return random_model(config.with_yarn(4.0))


def test_a_million_positions_are_offered(model):
    engine = Engine(model, config=EngineConfig(max_num_seqs=1))
    assert engine.max_context == 4 * TRAINED
    with pytest.raises(PromptTooLong, match="maximum context length is 1048576 tokens"):
        engine.submit((1,) * 4 * TRAINED, SamplingParams(), print)
    engine.close()


@pytest.mark.slow
@torch.inference_mode()
def test_a_reply_crosses_the_trained_length(model):
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(300, (TRAINED - 10,), generator=generator).tolist()
    # In one piece, the prompt needs no mask, whose size is a chunk's tokens times the context.
    engine = Engine(model, config=EngineConfig(max_num_seqs=1, prefill_chunk=TRAINED))
    reply = Listener(engine, prompt, SamplingParams(temperature=0.0, max_tokens=40))
    while reply.finish_reason is None:
        report = reply.reports.get(timeout=600)
        reply.token_ids.append(report.token.token_id)
        reply.finish_reason = report.finish_reason
    for place in (11, 39):
        assert greedy_reference(model, prompt + reply.token_ids[:place], 1) == [reply.token_ids[place]]
    again = Listener(engine, prompt + reply.token_ids, SamplingParams(temperature=0.0, max_tokens=1))
    again.wait()
    assert again.first.num_cached_tokens > TRAINED
    engine.close()
