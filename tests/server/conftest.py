"""Models to serve: what a reply is, the script says, or random weights and a real engine."""

import pytest
import torch

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.llm import LLM
from lathe.model.config import ModelConfig
from lathe.model.transformer import Transformer
from lathe.testing import tiny_tokenizer
from lathe.text.chat_template import ChatTemplate
from lathe.types import SamplingParams


@pytest.fixture
def ask():
    """The one user's turn that most tests send: what the reply is, the script says."""
    return {"model": "any-name", "messages": [{"role": "user", "content": "Hi."}]}


@pytest.fixture
def llm():
    tokenizer = tiny_tokenizer()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread only waits for the first on matrices this small
    torch.manual_seed(0)
    config = ModelConfig(
        architecture="qwen3",
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=64,
        max_position_embeddings=16_384,
    )
    engine = Engine(
        Transformer(config),
        eos_token_ids=(tokenizer.eos_token_id,),
        config=EngineConfig(max_num_seqs=4, kv_memory_bytes=2**26),
    )
    llm = LLM.from_parts(
        engine=engine,
        tokenizer=tokenizer,
        template=ChatTemplate.builtin(),
        model_id="random",
        default_sampling=SamplingParams(),
    )
    yield llm
    llm.close()
    torch.set_num_threads(threads)
