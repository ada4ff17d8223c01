"""What a model is: its sizes, and the flags that change its maths. Reads and writes config.json."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lathe.errors import CheckpointError

# architecture (config.json's model_type) -> the class name in config.json's "architectures"
ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}
DTYPES = ("float32", "bfloat16", "float16")

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_position_embeddings",
    "decoder_sparse_step",
)

# Fields that would change the maths and that no code here computes: field -> the values that mean "not used".
UNUSED = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1, 1.0),
    "rope_interleaved": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "shared_expert_intermediate_size": (0,),
    "n_shared_experts": (0,),
    "use_qk_norm": (True,),
}

# Qwen3's first dense models were trained on 32,768 positions and ship 40,960: room for a prompt on top.
# Their model card tells to write original_max_position_embeddings 32768 beside the 40,960.
QWEN3_TRAINED, QWEN3_SHIPPED = 32_768, 40_960


@dataclass(frozen=True)
class YarnConfig:
    """YaRN's stretch of the context (Peng et al. 2023): `factor` times `original_max_position_embeddings`.

    Frequencies that turn more than `beta_fast` times within the original length stay, those that turn less
    than `beta_slow` times are divided by `factor`, a ramp between. `attention_factor` scales cos and sin.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    @property
    def scale(self) -> float:
        """The given attention factor, or the paper's 0.1 ln(factor) + 1."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    @property
    def max_position_embeddings(self) -> int:
        return round(self.factor * self.original_max_position_embeddings)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder.

    Weights, with D hidden_size, H num_heads, K num_kv_heads, d head_dim, V vocab_size:
    embedding and head [V, D]; q_proj [H*d, D]; k_proj and v_proj [K*d, D]; o_proj [D, H*d];
    gate_proj and up_proj [I, D], down_proj [D, I], where I is intermediate_size in a dense layer and
    moe_intermediate_size in each of the num_experts experts of a sparse one; router [num_experts, D].

    `max_position_embeddings` is the longest context, YaRN included. `dtype` is what the weights are stored
    in (before any quantization). `attention_bias` puts a bias on q, k and v, never on o.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    yarn: YarnConfig | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = True
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise unknown_architecture(self.architecture)
        if self.dtype not in DTYPES:
            raise CheckpointError(f"the config's dtype is {self.dtype!r}; known are {', '.join(DTYPES)}")
        for name in SIZES:
            if getattr(self, name) < 1:
                raise CheckpointError(f"the config's {name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"{self.num_heads} query heads do not share {self.num_kv_heads} key-value heads evenly"
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"head_dim is {self.head_dim}; rotary embeddings turn pairs, so it must be even"
            )
        if self.num_experts and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise CheckpointError(
                f"num_experts_per_tok is {self.num_experts_per_tok} of {self.num_experts} experts"
            )

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer (counted from 0) has experts instead of one MLP."""
        return (
            self.num_experts > 0
            and layer not in self.mlp_only_layers
            and (layer + 1) % self.decoder_sparse_step == 0
        )

    def with_yarn(self, factor: float) -> ModelConfig:
        """The same model with its context stretched `factor` times. Short prompts change a little, too."""
        if self.yarn is not None:
            raise CheckpointError(
                f"this model already stretches {self.yarn.original_max_position_embeddings} positions "
                f"{self.yarn.factor:g} times by YaRN; drop the new factor"
            )
        if factor <= 1:
            raise CheckpointError(f"YaRN's factor is {factor:g}; it must be above 1")
        original = self.max_position_embeddings
        if self.architecture.startswith("qwen3") and original == QWEN3_SHIPPED:
            original = QWEN3_TRAINED
        yarn = YarnConfig(float(factor), original)
        return replace(self, yarn=yarn, max_position_embeddings=yarn.max_position_embeddings)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Reads config.json as transformers 4 or 5 write it.

        Raises CheckpointError for an unknown architecture, a missing size, and any setting that would change
        the maths in a way that is not implemented.
        """
        architecture = _architecture(config)
        _refuse_unknown_maths(config, architecture)
        heads = _size(config, "num_attention_heads")
        # a head of Qwen3 has 128 dimensions unless said otherwise; the others split hidden_size
        usual_head_dim = 128 if architecture == "qwen3" else _size(config, "hidden_size") // max(heads, 1)
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        longest = _size(config, "max_position_embeddings")
        yarn = _yarn(rope, longest)
        experts: dict[str, Any] = {}
        if architecture == "qwen3_moe":
            experts = {
                "num_experts": _size(config, "num_experts", "num_local_experts"),
                "num_experts_per_tok": _size(config, "num_experts_per_tok"),
                "moe_intermediate_size": _size(config, "moe_intermediate_size"),
                "norm_topk_prob": bool(config.get("norm_topk_prob", False)),
                "decoder_sparse_step": _size(config, "decoder_sparse_step", default=1),
                "mlp_only_layers": tuple(config.get("mlp_only_layers") or ()),
            }
        return cls(
            architecture=architecture,
            vocab_size=_size(config, "vocab_size"),
            hidden_size=_size(config, "hidden_size"),
            num_layers=_size(config, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_size(config, "num_key_value_heads", default=heads),
            head_dim=_size(config, "head_dim", default=usual_head_dim),
            intermediate_size=_size(config, "intermediate_size"),
            **experts,
            max_position_embeddings=yarn.max_position_embeddings if yarn else longest,
            rms_norm_eps=_positive(config, "rms_norm_eps", 1e-6),
            rope_theta=_positive(
                rope if rope.get("rope_theta") is not None else config, "rope_theta", 10_000.0
            ),
            yarn=yarn,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=architecture == "qwen2",
            qk_norm=architecture.startswith("qwen3"),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."),
        )

    def to_hf(self) -> dict[str, Any]:
        """config.json's content, spelled as in the published checkpoints (transformers 4; 5 reads it too)."""
        yarn = self.yarn
        config: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.architecture]],
            "model_type": self.architecture,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": self.dtype,
        }
        if self.architecture != "qwen2":  # there the biases are a part of the architecture, not a setting
            config["attention_bias"] = False
        if self.architecture != "llama":
            config["use_sliding_window"] = False
        if self.architecture == "qwen3_moe":
            config |= {
                "num_experts": self.num_experts,
                "num_experts_per_tok": self.num_experts_per_tok,
                "moe_intermediate_size": self.moe_intermediate_size,
                "norm_topk_prob": self.norm_topk_prob,
                "decoder_sparse_step": self.decoder_sparse_step,
                "mlp_only_layers": list(self.mlp_only_layers),
            }
        if yarn is not None:
            config["rope_scaling"] = {
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_max_position_embeddings,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
            }
            if yarn.attention_factor is not None:
                config["rope_scaling"]["attention_factor"] = yarn.attention_factor
        return config


def unknown_architecture(name: str) -> CheckpointError:
    close = difflib.get_close_matches(name, [*ARCHITECTURES, *ARCHITECTURES.values()], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    known = ", ".join(ARCHITECTURES.values())
    return CheckpointError(f"the architecture {name!r} is not one that runs here. Known are: {known}.{hint}")


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    if names:
        for architecture, class_name in ARCHITECTURES.items():
            if class_name == names[0]:
                return architecture
        raise unknown_architecture(names[0])
    model_type = config.get("model_type")
    if model_type is None:
        raise CheckpointError(
            "config.json names no architecture: it has neither architectures nor model_type"
        )
    if model_type not in ARCHITECTURES:
        raise unknown_architecture(model_type)
    return model_type


def _size(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool):
                raise CheckpointError(f"config.json's {name} is {value!r}, not a whole number")
            return value
    if default is None:
        raise CheckpointError(f"config.json has no {' or '.join(names)}")
    return default


def _positive(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"config.json's {name} is {value!r}, not a number above 0")
    return value


def _refuse_unknown_maths(config: Mapping[str, Any], architecture: str) -> None:
    unused = dict(UNUSED)
    if architecture != "qwen2":  # transformers puts this bias on o_proj as well
        unused |= {"attention_bias": (False,), "qkv_bias": (False,)}
    for name, neutral in unused.items():
        value = config.get(name)
        if value is not None and value not in neutral:
            raise CheckpointError(
                f"config.json sets {name} to {value!r}, which is not implemented for {architecture}"
            )
    odd_layers = set(config.get("layer_types") or ()) - {"full_attention"}
    if odd_layers:
        raise CheckpointError(
            f"config.json has layer_types {sorted(odd_layers)}; only full_attention is implemented"
        )


def _yarn(rope: Mapping[str, Any], longest: int) -> YarnConfig | None:
    """Reads rope_scaling (transformers 4) or rope_parameters (5); `longest` is max_position_embeddings."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise CheckpointError("config.json sets partial_rotary_factor, which is not implemented")
    if kind == "default":
        return None
    if kind != "yarn":
        raise CheckpointError(
            f"config.json's rope type {kind!r} is not implemented; known are default and yarn"
        )
    odd = [name for name in ("mscale", "mscale_all_dim") if rope.get(name)]
    if rope.get("truncate") is False:
        odd.append("truncate")
    if odd:
        raise CheckpointError(f"config.json's YaRN sets {', '.join(odd)}, which is not implemented")
    factor = rope.get("factor")
    if not isinstance(factor, int | float) or factor < 1:
        raise CheckpointError(f"config.json's YaRN factor is {factor!r}; it must be a number of at least 1")
    original = rope.get("original_max_position_embeddings") or longest
    yarn = YarnConfig(
        factor=float(factor),
        original_max_position_embeddings=original,
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        attention_factor=rope.get("attention_factor"),
    )
    _check_product(yarn, longest)
    return yarn


def _check_product(yarn: YarnConfig, longest: int) -> None:
    """A config may name the model's own length, or the stretched one; anything else is a copied number.

    Qwen3's dense models show 32768 in many a guide; copied to a model trained on 262,144 it would shrink it.
    """
    original, product = yarn.original_max_position_embeddings, yarn.max_position_embeddings
    if longest in (original, product) or (original, longest) == (QWEN3_TRAINED, QWEN3_SHIPPED):
        return
    raise CheckpointError(
        f"YaRN's factor {yarn.factor:g} times original_max_position_embeddings {original} is {product}, but "
        f"max_position_embeddings is {longest}. To stretch this model to {round(yarn.factor * longest)} "
        f"positions, write original_max_position_embeddings {longest}. If it was stretched from {original} "
        f"to {longest} already, write factor {longest / original:g}."
    )
