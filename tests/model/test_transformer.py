import pytest
import torch
from reference import Cache, logits_of

from lathe.kernels.attention import causal_attention
from lathe.kernels.experts import grouped_experts
from lathe.model.config import ModelConfig
from lathe.model.transformer import MoE, RMSNorm, Transformer

DENSE = ModelConfig(
    architecture="qwen3",
    vocab_size=100,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    max_position_embeddings=64,
)
SPARSE = ModelConfig(
    **vars(DENSE)
    | dict(architecture="qwen3_moe", num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24)
)
TOKENS = torch.tensor([5, 17, 99, 0, 42, 5, 61])


def random_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = Transformer(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def run(model, tokens, lengths):
    positions = torch.cat([torch.arange(length) for length in lengths])

    def attend(layer, q, k, v):
        return causal_attention(q, k, v, lengths)

    return model.logits(model(tokens, positions, attend, grouped_experts))


def test_the_names_of_the_weights_are_the_promised_ones():
    names = set(Transformer(SPARSE, device="meta").state_dict())
    attention = {
        f"self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
    }
    mlp = {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    layer = attention | mlp | {"input_layernorm.weight", "post_attention_layernorm.weight"}
    layers = {f"layers.{index}.{name}" for index in range(2) for name in layer}
    assert names == layers | {"embed_tokens.weight", "norm.weight", "lm_head.weight"}


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_sequences_packed_together_do_not_see_each_other(config):
    model = random_model(config)
    packed = run(model, TOKENS, [3, 4])
    apart = torch.cat([run(model, TOKENS[:3], [3]), run(model, TOKENS[3:], [4])])
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_a_token_sees_only_what_precedes_it(config):
    model = random_model(config)
    changed = TOKENS.clone()
    changed[4] = 7
    before, after = run(model, TOKENS, [7]), run(model, changed, [7])
    torch.testing.assert_close(before[:4], after[:4], atol=1e-5, rtol=0)
    assert (before[4:] - after[4:]).abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("config", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_gradients_against_finite_differences(config):
    """Every weight, in double precision: the directional derivative along a random direction."""
    model = random_model(config, torch.float64)

    def loss():
        return torch.nn.functional.cross_entropy(run(model, TOKENS[:-1], [6]), TOKENS[1:])

    loss().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    step = 1e-4
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            above = loss()
            parameter.sub_(direction, alpha=2 * step)
            below = loss()
            parameter.add_(direction, alpha=step)
        expected = float((above - below) / (2 * step))
        # rotary tables and routing are fp32 on purpose
        assert float((parameter.grad * direction).sum()) == pytest.approx(expected, rel=2e-2, abs=2e-3), name


def test_training_makes_the_loss_smaller():
    model = random_model(SPARSE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(run(model, TOKENS[:-1], [6]), TOKENS[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_inference_mode_gives_the_same_and_training_works_after_it():
    model = random_model(SPARSE)
    with torch.inference_mode():
        inferred = run(model, TOKENS, [7])
    trained = run(model, TOKENS, [7])
    assert torch.equal(inferred, trained)
    trained.sum().backward()


def test_a_tied_head_is_the_embedding():
    model = random_model(ModelConfig(**vars(DENSE) | {"tie_word_embeddings": True}))
    assert model.lm_head is None and "lm_head.weight" not in model.state_dict()
    hidden = torch.randn(3, 32)
    assert torch.equal(model.logits(hidden), hidden @ model.embed_tokens.weight.T)


def test_bf16_stays_close_to_fp32():
    model = random_model(SPARSE)
    exact = run(model, TOKENS, [7])
    rounded = run(model.bfloat16(), TOKENS, [7])
    assert rounded.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rounded.float(), exact, dim=-1).min() > 0.98


@pytest.mark.parametrize("normalised", [True, False])
def test_the_router(normalised):
    config = ModelConfig(**vars(SPARSE) | {"norm_topk_prob": normalised})
    moe = MoE(config)
    x = torch.randn(20, 32)
    expert_ids, weights = moe.route(x)
    probs = (x.double() @ moe.gate.weight.double().T).softmax(-1)
    best = probs.sort(descending=True)
    assert torch.equal(expert_ids, best.indices[:, :2])
    expected = best.values[:, :2] / (best.values[:, :2].sum(-1, keepdim=True) if normalised else 1)
    torch.testing.assert_close(weights.double(), expected, atol=1e-6, rtol=0)


def test_rms_norm_sums_in_fp32():
    """Against a sum in double precision: the squares of 300 overflow fp16."""
    norm = RMSNorm(4096, 1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        x = (300 * torch.randn(2, 4096)).to(dtype)
        expected = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        out = norm.to(dtype)(x)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-3)


def test_one_token_after_a_long_past():
    model = random_model(SPARSE)
    with torch.inference_mode():
        cache = Cache()
        logits_of(model, TOKENS[:-1], cache)
        last = logits_of(model, TOKENS[-1:], cache, start=6)
        torch.testing.assert_close(last[0], logits_of(model, TOKENS)[-1], atol=1e-5, rtol=0)
