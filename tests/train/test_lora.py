"""LoRA: the model's weights are the merged ones, and only the two factors of each are trained."""

import copy
import json
import queue

import pytest
import torch
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine, EngineConfig
from lathe.engine.kv_cache import bytes_per_token
from lathe.errors import CheckpointError, UserError
from lathe.kernels.cpu.library import load
from lathe.train.batch import Batch, Sample, pack
from lathe.train.lora import Lora, LoraConfig
from lathe.train.lora_files import load_lora, save_lora
from lathe.train.trainer import TrainConfig, Trainer
from lathe.types import SamplingParams

MOE = dict(architecture="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
SHAPES = {"dense": {}, "moe": MOE}
CONFIG = LoraConfig(rank=3, alpha=6)
SAMPLES = [
    Sample(tuple((7 * n + 5 * k) % 300 for k in range(9 + n)), (False, *[True] * (8 + n))) for n in range(3)
]


def nll(logprobs_N, batch: Batch):
    return -(batch.weights_N * logprobs_N).sum(), {}


def stirred(lora: Lora) -> Lora:
    """Adapters that do something: B is no longer zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, factor in lora.named_parameters():
            if name.endswith("lora_B"):
                factor.copy_(torch.randn(factor.shape, generator=generator) * 0.05)
    lora.merge()
    return lora


@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_factors_get_the_gradients_that_the_merged_weights_mean(shape):
    model = random_model(tiny_config(**SHAPES[shape]))
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    lora = stirred(Lora(model, CONFIG))
    trainer = Trainer(model, TrainConfig(), lora=lora)
    nll(trainer.score(pack(SAMPLES)).logprobs_N, pack(SAMPLES))[0].backward()
    found = {name: factor.grad for name, factor in lora.named_parameters()}

    plain = random_model(model.config)
    plain.load_state_dict(model.state_dict())
    nll(Trainer(plain, TrainConfig()).score(pack(SAMPLES)).logprobs_N, pack(SAMPLES))[0].backward()
    factors = {name: factor.detach().requires_grad_() for name, factor in lora.named_parameters()}
    for name, weight in plain.named_parameters():
        if name in lora.adapters:
            merged = base[name] + CONFIG.scale * factors[f"{name}.lora_B"] @ factors[f"{name}.lora_A"]
            torch.testing.assert_close(weight.detach(), merged.detach())
            merged.backward(weight.grad)
    for name, factor in factors.items():
        torch.testing.assert_close(found[name], factor.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("deterministic", [False, True])
def test_only_adapters_are_trained(deterministic):
    if deterministic and load() is None:
        pytest.skip("no compiled kernels here")
    model = random_model(tiny_config(**MOE))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    lora = Lora(model, CONFIG)
    trainer = Trainer(model, TrainConfig(lr=1e-2, deterministic=deterministic), lora=lora)
    losses = [trainer.step(SAMPLES, nll)["loss"] for _ in range(4)]
    assert losses[-1] < losses[0] - 1
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == set(lora.adapters)
    assert len(moved) == 2 * (4 + 2)  # of two layers: attention's projections, both stacks of experts
    assert all(weight.grad is None for weight in model.parameters())
    trained = [weight for group in trainer.optimizers[0].param_groups for weight in group["params"]]
    assert sum(map(torch.Tensor.numel, trained)) == sum(
        factor.numel() for _, factor in lora.named_parameters()
    )


@pytest.mark.skipif(load() is None, reason="no compiled kernels here")
def test_an_engine_that_shares_the_memory_serves_the_merged_weights_bit_for_bit():
    model = random_model(tiny_config(**MOE))
    trainer = Trainer(model, TrainConfig(lr=1e-2, deterministic=True), lora=Lora(model, CONFIG))
    memory = bytes_per_token(model.config, torch.float32) * 2048
    engine = Engine(model, config=EngineConfig(kv_memory_bytes=memory))
    try:
        for _ in range(2):
            trainer.step(SAMPLES, nll)
            engine.update_weights({})
            reports: queue.SimpleQueue = queue.SimpleQueue()
            engine.submit(
                (5, 6, 7), SamplingParams(max_tokens=8, seed=3, deterministic=True, logprobs=0), reports.put
            )
            tokens = [reports.get(timeout=60).token for _ in range(8)]
            ids = (5, 6, 7, *(token.token_id for token in tokens))
            sample = Sample(ids, (False,) * 3 + (True,) * 8)
            assert trainer.logprobs(pack([sample])).tolist() == [token.logprob for token in tokens]
    finally:
        engine.close()


def test_a_state_goes_on_where_it_was():
    def fresh():
        model = random_model(tiny_config(**MOE))
        return Trainer(model, TrainConfig(lr=1e-2), lora=Lora(model, CONFIG))

    one, other = fresh(), fresh()
    one.step(SAMPLES, nll)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert one.step(SAMPLES, nll)["loss"] == other.step(SAMPLES, nll)["loss"]
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj"), ("experts.gate_up_proj",), ("layers.1.*",)])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_saved_adapters_are_loaded_again(tmp_path, shape, targets):
    if shape == "dense" and "experts.gate_up_proj" in targets:
        pytest.skip("no experts there")
    config = tiny_config(**SHAPES[shape])
    lora = stirred(Lora(model := random_model(config), LoraConfig(3, 6, rslora=True, targets=targets)))
    save_lora(lora, tmp_path)
    loaded = load_lora(again := random_model(config), tmp_path)
    assert list(loaded.adapters) == list(lora.adapters)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.slow  # PEFT and transformers take ten seconds to import
@pytest.mark.parametrize("shape", list(SHAPES))
def test_peft_computes_the_same(tmp_path, shape):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    from lathe.model.checkpoint import save_model

    model = random_model(tiny_config(**SHAPES[shape]))
    save_model(model, tmp_path / "base")
    save_lora(stirred(lora := Lora(model, CONFIG)), tmp_path / "lora")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "lora")
    ids = torch.tensor([SAMPLES[2].token_ids])
    with torch.no_grad():
        wanted = adapted(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    found = Trainer(model, TrainConfig(), lora=lora).logprobs(pack([SAMPLES[2]]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    # and back: PEFT's own file, of another draw
    with torch.no_grad():
        for name, factor in adapted.named_parameters():
            if "lora_" in name:
                factor.mul_(1.5)
        wanted = adapted(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    adapted.save_pretrained(tmp_path / "theirs")
    again = random_model(tiny_config(**SHAPES[shape]))
    lora = load_lora(again, tmp_path / "theirs")
    found = Trainer(again, TrainConfig(), lora=lora).logprobs(pack([SAMPLES[2]]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_makes_no_sense_is_refused_by_name(tmp_path):
    model = random_model(tiny_config())
    with pytest.raises(UserError, match=r"'qq_proj' is no linear layer of this model. It has down_proj"):
        Lora(model, LoraConfig(targets=("qq_proj",)))
    with pytest.raises(UserError, match=r"lora.rank is 0"):
        Lora(model, LoraConfig(rank=0))
    save_lora(Lora(model, CONFIG), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"lacks base_model.model.model.layers.0.self_attn.q_proj.lora_A"
    ):
        load_lora(random_model(tiny_config(hidden_size=32)), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(CheckpointError, match="use_dora is not supported"):
        load_lora(random_model(tiny_config()), tmp_path)


@pytest.mark.slow  # transformers and llama.cpp take seconds to import
def test_an_export_is_of_the_merged_weights(tmp_path):
    transformers, xllamacpp = pytest.importorskip("transformers"), pytest.importorskip("xllamacpp")
    from lathe.testing import tiny_tokenizer
    from lathe.train.parts import export, new_parts

    parts = new_parts(tiny_config(hidden_size=64, head_dim=32, **MOE), tiny_tokenizer())
    lora = Lora(parts.model, LoraConfig(rank=8, alpha=64))
    trainer = Trainer(parts.model, TrainConfig(lr=3e-2), lora)
    prompt, reply = list(b"def add(a, b):"), b" return"
    ids = (*prompt, *reply)
    lesson = Sample(ids, (False,) * len(prompt) + (True,) * len(reply))
    before = trainer.logprobs(pack([lesson]))
    for _ in range(20):
        trainer.step([lesson], nll)
    right = trainer.logprobs(pack([lesson]))
    assert float((right - before).mean()) > 0.5

    export(parts, tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        logprobs = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = logprobs[len(prompt) - 1 : -1].gather(-1, torch.tensor([*reply])[:, None])[:, 0]
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)

    params = xllamacpp.CommonParams()
    params.model.path = str(export(parts, tmp_path / "out.gguf", gguf_type="f32"))
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
    params.warmup, params.fit_params, params.verbosity = False, False, -1
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 3}
    )
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    best = logprobs[len(prompt) - 1].topk(3)
    assert [entry["id"] for entry in top] == best.indices.tolist()
    assert [entry["logprob"] for entry in top] == pytest.approx(best.values.tolist(), abs=1e-2)
