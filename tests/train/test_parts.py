"""What a run begins with, and that others load what it exports."""

import pytest
import torch
from test_trainer import nll
from tiny_models import tiny_config

from lathe.engine.engine import EngineConfig
from lathe.engine.llm import LLM
from lathe.errors import UserError
from lathe.kernels.attention import causal_attention
from lathe.kernels.experts import grouped_experts
from lathe.testing import tiny_tokenizer
from lathe.train.batch import Sample
from lathe.train.parts import Parts, export, load_parts, new_model, new_parts
from lathe.train.trainer import TrainConfig, Trainer

MOE = dict(
    architecture="qwen3_moe",
    num_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=32,
    hidden_size=64,
    head_dim=32,
)
PROMPT = list(b"def add(a, b):")


@pytest.fixture(scope="module")
def trained() -> Parts:
    parts = new_parts(tiny_config(**MOE), tiny_tokenizer(), seed=3)
    ids = (*PROMPT, *b" return a + b")  # llama.cpp reports no half characters, so it learns whole ones
    lesson = Sample(ids, (False,) + (True,) * (len(ids) - 1))
    trainer = Trainer(parts.model, TrainConfig(lr=1e-2))
    for _ in range(12):
        trainer.step([lesson], nll)
    return parts


@torch.inference_mode()
def logits(parts: Parts) -> torch.Tensor:
    count = len(PROMPT)
    hidden = parts.model(
        torch.tensor(PROMPT),
        torch.arange(count),
        lambda _, q, k, v: causal_attention(q, k, v, [count]),
        grouped_experts,
    )
    return parts.model.logits(hidden)


def test_lathe_loads_an_export(trained, tmp_path):
    export(trained, tmp_path / "out")
    again = load_parts(str(tmp_path / "out"))
    assert torch.equal(logits(again), logits(trained))
    assert again.tokenizer.encode("<|im_start|>x", allow_special=True) == [257, ord("x")]
    assert again.template.source == trained.template.source
    assert again.eos_token_ids == trained.eos_token_ids
    with LLM(tmp_path / "out", engine_config=EngineConfig(max_context=64)) as llm:
        completion = llm.generate(PROMPT, max_tokens=1, temperature=0.0, logprobs=0)
    assert completion.token_ids[0] == int(logits(trained)[-1].argmax())


def test_transformers_loads_an_export(trained, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    export(trained, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(theirs, logits(trained), rtol=1e-4, atol=1e-5)
    assert set(GenerationConfig.from_pretrained(tmp_path).eos_token_id) == set(trained.eos_token_ids)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert trained.tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_llama_cpp_loads_an_export(trained, tmp_path):
    import xllamacpp

    path = export(trained, tmp_path / "out.gguf", gguf_type="f32")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
    params.warmup, params.fit_params, params.verbosity = False, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "n_probs": 3}
    )
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    right = logits(trained)[-1].log_softmax(-1)
    assert [entry["id"] for entry in top] == right.topk(3).indices.tolist()
    assert [entry["logprob"] for entry in top] == pytest.approx(right.topk(3).values.tolist(), abs=1e-2)


def test_a_new_model_is_its_seeds():
    config = tiny_config(**MOE)
    one, same, other = (new_model(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(weight, same[name]) for name, weight in one.items())
    assert not torch.equal(one["embed_tokens.weight"], other["embed_tokens.weight"])
    assert 0.015 < one["layers.0.mlp.experts.gate_up_proj"].std() < 0.025


def test_a_tokenizer_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="vocab_size is 100, and the tokenizer has 271 tokens"):
        new_parts(tiny_config(vocab_size=100), tiny_tokenizer())
