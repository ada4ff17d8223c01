import pytest
import torch
from listening import GREEDY, Listener, config, greedy_reference
from tiny_models import random_model, tiny_config

from lathe.engine.engine import Engine
from lathe.errors import InvalidRequest
from lathe.model.packed import pack_layers, packed_weights, weight_shapes
from lathe.model.transformer import Transformer
from lathe.types import SamplingParams

CONFIG = tiny_config(
    architecture="qwen3_moe",
    hidden_size=64,
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
)


def packed_twin(wide: Transformer) -> Transformer:
    """`wide` quantized to q8_0; it keeps the numbers that are left."""
    packed = Transformer(wide.config, device="meta", dtype=torch.float32)
    shapes = weight_shapes(wide)
    pack_layers(packed, {name: "q8_0" for name, shape in shapes.items() if len(shape) > 1})
    packed.load_state_dict(wide.state_dict(), assign=True)
    for name, weight in packed_weights(packed).items():
        wide.get_parameter(name).data = weight.dequantize()
    return packed


def test_a_packed_model_serves_and_takes_new_weights():
    wide, other = random_model(CONFIG), random_model(CONFIG, seed=1)
    packed = packed_twin(wide)
    new = {name: weight.clone() for name, weight in other.state_dict().items()}
    packed_twin(other)
    engine = Engine(packed, config=config(packed, compiled=False))
    try:
        assert Listener(engine, [1, 2, 3]).wait() == greedy_reference(wide, [1, 2, 3], GREEDY.max_tokens)
        assert engine.update_weights(new) == 1
        assert Listener(engine, [1, 2, 3]).wait() == greedy_reference(other, [1, 2, 3], GREEDY.max_tokens)
        with pytest.raises(InvalidRequest, match=r"has the shape \[3, 64\]; the model's is \[300, 64\]"):
            engine.update_weights({"embed_tokens.weight": torch.zeros(3, 64)})
    finally:
        engine.close()


def test_a_packed_model_is_deterministic_when_asked():
    packed = packed_twin(random_model(CONFIG))
    sampling = SamplingParams(temperature=0.0, max_tokens=8, deterministic=True)
    engine = Engine(packed, config=config(packed, compiled=False))
    try:
        alone = Listener(engine, [7, 8, 9], sampling)
        alone.wait()
        together = [Listener(engine, [7, 8, 9], sampling)]
        together += [Listener(engine, list(range(n, 40)), GREEDY) for n in range(3)]
        for listener in together:
            listener.wait()
        assert together[0].logprobs == alone.logprobs
    finally:
        engine.close()
